"""Kronecker factors of every layer for each term of the loss, as moving averages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.errors import ConfigError, Fault, UnsupportedEvidence
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
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.rows import rows_of
from curvlab.protocols.storage import work_of
from curvlab.protocols.structure import Family, Structure, as_gram

PART = "term-covariance"


@dataclass
class TermState:
    """A and B by block, one of each per term; ``observed`` counts each term's observations, by block."""

    A: dict[str, list[Structure]]
    B: dict[str, list[Structure]]
    observed: dict[str, list[int]]


@dataclass(frozen=True)
class TermCovariance(CurvatureEstimator[TermState]):
    """``C ≈ Σ_t B_t ⊗ A_t`` per layer, t over the terms of the loss.

    KFAC for PINNs (Dangel, Müller and Zeinhofer 2024, arXiv 2405.15603): two terms, the equation inside and
    the boundary values.  Of a term with n points and a layer with s channels,
    ``A_t = 1/(n s) Σ a aᵀ`` and ``B_t = 1/n Σ g gᵀ``: a are the layer's input channels (the bias column is 1
    for the value, 0 for derivatives), g the gradients of the term's residual in its output channels.
    That is KFAC-expand.  Moving averages are normalised by the sum of their weights; a term without examples
    in a step is as it was.  ``terms`` is the largest number of terms: the factors of others stay zero.

    State: ``i² + o²`` scalars per term with dense factors; an observation costs ``2 n s (i² + o²)`` flops.
    """

    A: Family
    B: Family
    labels: Labels = Labels.EXACT
    decay: Fraction = 0.95
    samples: Count = 1
    terms: Count = 2

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
        A = {n: [self.A.zeros(s[1], like=empty) for _ in range(self.terms)] for n, s in shapes}
        B = {n: [self.B.zeros(s[0], like=empty) for _ in range(self.terms)] for n, s in shapes}
        return TermState(A, B, {name: [0] * self.terms for name in like.layout.shapes})

    def observe(self, state: TermState, seen: Evaluation, ctx: Context) -> None:
        for name, terms in seen.layers[self.labels].items():
            if len(terms) > self.terms:
                raise UnsupportedEvidence(
                    PART,
                    name,
                    expected=f"statistics of at most {self.terms} loss terms",
                    got=f"{len(terms)}",
                    hint=f"set terms = {len(terms)}",
                )
            for t, term in enumerate(terms):
                if not len(term.inputs):
                    continue
                state.observed[name][t] += 1
                w = newest_weight(self.decay, state.observed[name][t])
                A, B = state.A[name][t], state.B[name][t]
                rows = rows_of(PART, name, (term,), seen, "expand", work_of(A))
                assert not isinstance(rows.a, Lookups), "the layers of a PINN are linear"
                _average_(A, 1 - w, rows.a, w * rows.a_weight, ctx)
                assert rows.g is not None
                _average_(B, 1 - w, rows.g, w * rows.g_weight, ctx)

    def curvature(self, state: TermState) -> BlockDiagonal:
        blocks: dict[str, BlockOperator] = {}
        for name, factors in state.A.items():
            pairs = zip(state.B[name], factors, strict=True)
            blocks[name] = KroneckerSum(tuple(Kronecker(B, A) for B, A in pairs))
        return BlockDiagonal(blocks)


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
