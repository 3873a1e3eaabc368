"""Kronecker factors of every layer for equations and for conditions, as moving averages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.averages import newest_weight
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker, KroneckerSum
from curvlab.linalg.lookups import Lookups
from curvlab.linalg.operator import BlockOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Count, Fraction, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.dtypes import Dtypes
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.rows import rows_of
from curvlab.protocols.storage import work_of
from curvlab.protocols.structure import Family, Structure, as_gram

PART = "term-covariance"

#: terms for which a layer sees several channels of a jet, and terms for which it sees the value alone
GROUPS = ("jets", "values")


@dataclass
class TermState:
    """A and B by block, one of each per group of terms; ``observed`` counts each group's observations."""

    A: dict[str, list[Structure]]
    B: dict[str, list[Structure]]
    observed: dict[str, list[int]]


@dataclass(frozen=True)
class TermCovariance(CurvatureEstimator[TermState]):
    """``C ≈ B₁ ⊗ A₁ + B₂ ⊗ A₂`` per layer: a Kronecker product for each of two groups of terms.

    KFAC for PINNs (Dangel, Müller and Zeinhofer 2024, arXiv 2405.15603), for any number of terms.  Group 1
    holds the terms for which the layer sees several channels of a jet: equations, and conditions on
    derivatives.  Group 2 holds the terms for which it sees the value alone, as those of other losses do.
    For a term t with n points and a layer with s channels, ``A_t = 1/(n s) Σ a aᵀ`` and ``B_t = 1/n Σ g gᵀ``.
    Here a are the layer's input channels (the bias column is 1 for the value, 0 for derivatives), and g the
    gradients of the term's residual, times the root of the term's weight, in its output channels.  This is
    KFAC-expand.  In a group, A is the mean of ``A_t`` and B the sum of ``B_t`` over the terms with points in
    this step.

    Moving averages are normalized by the sum of their weights.  A step without points for a group leaves its
    factors unchanged, and C has no product for a group that was never observed.

    State: ``i² + o²`` scalars per group with dense factors; an observation costs ``2 n s (i² + o²)`` flops.
    """

    A: Family
    B: Family
    labels: Labels = Labels.EXACT
    decay: Fraction = 0.95
    samples: Count = 1

    def __post_init__(self) -> None:
        as_gram(self.A, PART)
        as_gram(self.B, PART)
        if self.labels is Labels.NONE:
            raise ConfigError(
                Fault(f'{PART}: labels = "none" gives no output gradients', path="labels", hint='use "exact"')
            )
        check_bounds(self)

    @property
    def by_layer(self) -> bool:
        return True

    def needs(self) -> Needs:
        return Needs.statistics(self.labels, self.samples)

    def refuses(self, block: Block) -> str | None:
        return None if block.is_layer else block.reason

    def init(self, like: BlockVector, ctx: Context) -> TermState:
        _require_full_passes(ctx.backend.dtypes)
        shapes, empty = like.layout.shapes.items(), ctx.like(like, "factors")
        A = {n: [self.A.zeros(s[1], like=empty) for _ in GROUPS] for n, s in shapes}
        B = {n: [self.B.zeros(s[0], like=empty) for _ in GROUPS] for n, s in shapes}
        return TermState(A, B, {name: [0 for _ in GROUPS] for name in like.layout.shapes})

    def observe(self, state: TermState, seen: Evaluation, ctx: Context) -> None:
        for name, terms in seen.layers[self.labels].items():
            for k, group in enumerate(grouped(terms)):
                if not group:
                    continue
                state.observed[name][k] += 1
                w = newest_weight(self.decay, state.observed[name][k])
                A, B = state.A[name][k], state.B[name][k]
                rows = rows_of(PART, name, group, seen, "expand", work_of(A))
                assert not isinstance(rows.a, Lookups), "the layers of a PINN are linear"
                _average_(A, 1 - w, rows.a, w * rows.a_weight, ctx)
                assert rows.g is not None
                _average_(B, 1 - w, rows.g, w * rows.g_weight, ctx)

    def curvature(self, state: TermState) -> BlockDiagonal:
        blocks: dict[str, BlockOperator] = {}
        for name, counts in state.observed.items():
            pairs = zip(state.B[name], state.A[name], strict=True)
            products = tuple(Kronecker(B, A) for B, A in pairs)
            found = tuple(p for p, count in zip(products, counts, strict=True) if count)
            blocks[name] = KroneckerSum(found or products)
        return BlockDiagonal(blocks)


def grouped(terms: tuple[LayerStats, ...]) -> tuple[tuple[LayerStats, ...], ...]:
    """The terms with examples, in the order of ``GROUPS``."""
    present = [t for t in terms if len(t.inputs)]
    jets = [t.channels and t.inputs.shape[1] > 1 for t in present]
    return tuple(
        tuple(t for t, jet in zip(present, jets, strict=True) if jet is (group == "jets")) for group in GROUPS
    )


def _require_full_passes(dtypes: Dtypes) -> None:
    """Raise ``ConfigError`` for passes in 16 bits."""
    passes = dtypes.compute or dtypes.parameters
    if torch.finfo(passes).bits < 32:
        raise ConfigError(
            Fault(
                f"{PART} does not work with passes in {str(passes).removeprefix('torch.')}: residuals are"
                " differences of derivatives, of which 16 bits leave no digit",
                path="precision",
                hint='use precision = "float32" or "float64"',
            )
        )


def _average_(M: Structure, keep: float, X: Tensor, weight: float, ctx: Context) -> None:
    """M ← keep · M + Π(weight · XᵀX)."""
    gram = as_gram(M.family, PART)
    ctx.storage.change_(M, lambda M: gram.average_(M, keep, X, weight, ctx.backend))
