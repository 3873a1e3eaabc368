"""The diagonal of the Fisher matrix from labels that the model would give: Sophia's estimate of curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.averages import newest_weight
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import KroneckerEigen
from curvlab.linalg.vectors import BlockVector
from curvlab.linalg.work import work_dtype
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Count, Fraction, Natural, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.reader import squared, total

#: entries of per-example gradients that are formed at once where an example has several rows
ENTRIES = 2**24


@dataclass
class DiagonalState:
    """Moving average of the diagonal, and how often each block was observed."""

    diagonal: BlockVector
    observed: dict[str, int]


@dataclass(frozen=True)
class SampledDiagonal(CurvatureEstimator[DiagonalState]):
    """C ≈ Diag(h), h a moving average of the diagonal of the Fisher matrix of the mean loss, labels sampled.

    ``squares = "examples"``: ``mean_n (∂ℓ_n/∂θ)²``, the squares of single examples.  ``"batch"``:
    ``B (∂L/∂θ)²``, B times the square of the mean gradient over the B terms of the loss: the
    Gauss-Newton-Bartlett estimate (Liu et al. 2023, arXiv 2305.14342).  Labels of different examples are
    independent and their gradients have mean zero, so both have the same expectation; that of the batch is
    noisier, and costs one product of the shape of the gradient per layer, whatever the layer.
    ``examples`` bounds what an observation takes: the first so many examples (whole micro-batches), or
    all (0).  Without ``bias_correction`` the average begins at zero, as the paper's does.
    """

    separable = True

    squares: Literal["examples", "batch"] = "examples"
    decay: Fraction = 0.99
    samples: Count = 1
    examples: Natural = 0
    bias_correction: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def by_layer(self) -> bool:
        return True

    def needs(self) -> Needs:
        return Needs.statistics(Labels.MODEL, self.samples, layer_examples=self.examples)

    def refuses(self, block: Block) -> str | None:
        return None if block.is_layer else block.reason

    def init(self, like: BlockVector, ctx: Context) -> DiagonalState:
        return DiagonalState(ctx.zeros(like, "factors"), dict.fromkeys(like.layout.names, 0))

    def observe(self, state: DiagonalState, seen: Evaluation, ctx: Context) -> None:
        for name, terms in seen.layers[Labels.MODEL].items():
            state.observed[name] += 1
            corrected = newest_weight(self.decay, state.observed[name])
            work = work_dtype(state.diagonal.dtype)
            fresh = torch.stack([self._diagonal(t.to(work)) for t in terms]).sum(0)
            share = corrected if self.bias_correction else 1 - self.decay
            ctx.storage.updated_(state.diagonal[name], lambda D: D.lerp_(fresh, share))  # noqa: B023

    def curvature(self, state: DiagonalState) -> BlockDiagonal:
        return BlockDiagonal({name: KroneckerEigen(None, None, D) for name, D in state.diagonal.items()})

    def _diagonal(self, stats: LayerStats) -> Float[Tensor, "o i"]:
        """The diagonal of one term's Fisher matrix; rows of gradients carry the weight of a sample."""
        assert stats.grads is not None, "labels sampled from the model come with gradients"
        a, grads, n = stats.inputs, stats.grads, max(len(stats.inputs), 1)
        if self.squares != "batch":
            return squared(a, grads, ENTRIES).div_(n)
        found = grads.new_zeros(grads.shape[-1], a.shape[-1])
        for g in grads:
            found += total(a, g).square()
        return found.div_(n)
