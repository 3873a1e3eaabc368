"""Kronecker factors of linear layers, as moving averages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curvlab.linalg.averages import newest_weight
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker
from curvlab.linalg.operator import BlockOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Count, Fraction, Natural, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.rows import Sharing, rows_of
from curvlab.protocols.storage import work_of
from curvlab.protocols.structure import Family, Structure, as_gram
from curvlab.structures.inputs import family_of_inputs
from curvlab.structures.work import work_of_pair


@dataclass
class CovarianceState:
    """Factors by block; ``B`` is empty for ``labels = "none"``.  ``observed`` counts observations."""

    A: dict[str, Structure]
    B: dict[str, Structure]
    observed: dict[str, int]


@dataclass(frozen=True)
class LayerCovariance(CurvatureEstimator[CovarianceState]):
    """``C ≈ B ⊗ A`` per layer: KFAC (Martens & Grosse 2015, arXiv 1503.05671); specs 6.1.

    ``A = E[a aᵀ]`` of the inputs (bias column included), ``B = E[g gᵀ]`` of the back-propagated
    vectors that ``labels`` chooses: sampled from the model (``samples`` per example), exact columns
    of the output Hessian's root, the data's own gradients, or none (B = I: FOOF).  Both are moving
    averages normalized by the sum of their weights, so the first observation counts in full.
    ``examples`` bounds what an observation holds: statistics of the first so many examples (whole
    micro-batches) of the gradient sample, or of all of it (0).
    An observation costs ``2 r i² + 2 q o²`` flops for dense factors on r and q rows.
    """

    separable = True

    A: Family
    B: Family
    labels: Labels = Labels.MODEL
    decay: Fraction = 0.95
    sharing: Sharing = "auto"
    samples: Count = 1
    examples: Natural = 0
    tied: bool = False  #: also treat a matrix that is used transposed elsewhere: a head tied to its embedding

    def __post_init__(self) -> None:
        as_gram(self.A, "layer-covariance")
        as_gram(self.B, "layer-covariance")
        check_bounds(self)

    @property
    def by_layer(self) -> bool:
        return True

    def needs(self) -> Needs:
        return Needs.statistics(self.labels, self.samples, layer_examples=self.examples)

    def refuses(self, block: Block) -> str | None:
        return block.refusal(tied=self.tied)

    def work(self, block: Block) -> float:
        return work_of_pair(block, None if self.labels is Labels.NONE else self.B, self.A)

    def init(self, like: BlockVector, ctx: Context) -> CovarianceState:
        shapes, empty = like.layout.shapes, ctx.like(like, "factors")
        # the identity: a layer that was not observed yet, an expert without tokens, is not inverted as zero
        A = {
            name: family_of_inputs(self.A, like.layout, name).eye(shape[1], like=empty)
            for name, shape in shapes.items()
        }
        B = {name: self.B.eye(shape[0], like=empty) for name, shape in shapes.items()}
        return CovarianceState(A, {} if self.labels is Labels.NONE else B, dict.fromkeys(shapes, 0))

    def observe(self, state: CovarianceState, seen: Evaluation, ctx: Context) -> None:
        for name, terms in seen.layers[self.labels].items():
            rows = rows_of("layer-covariance", name, terms, seen, self.sharing, work_of(state.A[name]))
            state.observed[name] += 1
            w = newest_weight(self.decay, state.observed[name])
            _average_(state.A[name], 1 - w, rows.a, w * rows.a_weight, ctx)
            if rows.g is not None:
                _average_(state.B[name], 1 - w, rows.g, w * rows.g_weight, ctx)

    def observed(self, state: CovarianceState) -> dict[str, int]:
        return dict(state.observed)

    def curvature(self, state: CovarianceState) -> BlockDiagonal:
        blocks: dict[str, BlockOperator] = {
            name: Kronecker(state.B.get(name), A) for name, A in state.A.items()
        }
        return BlockDiagonal(blocks)


def _average_(M: Structure, keep: float, X: Any, weight: float, ctx: Context) -> None:
    """M ← keep · M + Π(weight · XᵀX), by the family that M belongs to: X are rows that it takes."""
    gram = as_gram(M.family, "layer-covariance")
    ctx.storage.change_(M, lambda M: gram.average_(M, keep, X, weight, ctx.backend))
