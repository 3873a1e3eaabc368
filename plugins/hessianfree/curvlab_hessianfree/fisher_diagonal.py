"""The diagonal preconditioner of Hessian-free optimization: (diag of the empirical Fisher + λ)^0.75."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.linalg.averages import newest_weight
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Fraction, Share, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, LayerStats, Solve
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.reader import squared

#: entries of per-example gradients that are formed at once where an example has several rows
ENTRIES = 2**24


@dataclass
class FisherDiagonalState:
    """``mean_n (∂ℓ_n/∂θ)²`` by block, as a moving average, and how often it was observed."""

    squares: BlockVector
    observed: int


@dataclass(frozen=True)
class FisherDiagonal(Preconditioner[FisherDiagonalState]):
    """``x = v / (D + λ)^exponent``, elementwise (Martens 2010, §4.7), where ``D = mean_n (∂ℓ_n/∂θ)²``.

    D is on the scale of the Gauss–Newton matrix of the mean loss, so λ is the solve's own.  The squares
    are of single examples, exactly, for the layers that statistics are captured of; of other blocks the
    square of the mean gradient stands for them, which is never more (Jensen).  ``decay`` averages
    over steps; 0 takes the present one alone.  An observation costs one product of the shape of the
    gradient per layer.
    """

    exponent: Share = 0.75
    decay: Fraction = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs.statistics(Labels.DATA)

    def joins(self, layer: str) -> bool:
        return True

    def refuses(self, block: Block) -> str | None:
        return None

    def init(self, like: BlockVector, ctx: Context) -> FisherDiagonalState:
        return FisherDiagonalState(ctx.zeros(like, "factors"), 0)

    def observe(self, state: FisherDiagonalState, seen: Evaluation, ctx: Context) -> None:
        state.observed += 1
        share = newest_weight(self.decay, state.observed)
        layers = seen.layers[Labels.DATA]
        for name, mine in state.squares.items():
            if name in layers:
                squares = sum(mean_square(t.to(seen.gradient.dtype), seen.positions) for t in layers[name])
            else:
                squares = seen.gradient[name].square()
            ctx.storage.updated_(mine, lambda D: D.mul_(1 - share).add_(squares, alpha=share))  # noqa: B023

    def apply(self, state: FisherDiagonalState, v: BlockVector, ctx: Context) -> Solve:
        scale = (state.squares.flat.to(v.dtype) + ctx.damping).pow_(-self.exponent)
        x = v.empty_like()
        torch.mul(v.flat, scale, out=x.flat)
        return Solve(x)


def mean_square(stats: LayerStats, positions: int) -> Tensor:
    """``mean_n (∂ℓ_n/∂W)²`` elementwise, ``[o, i]``; rows carry ``√positions`` too much for a sum."""
    assert stats.grads is not None, 'labels = "data" come with output gradients'
    a = stats.inputs
    scale = 1.0 / (max(len(a), 1) * positions)
    return squared(a, stats.grads[:1], ENTRIES) * scale
