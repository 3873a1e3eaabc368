"""Adam's preconditioner: the diagonal second moment of the gradient, to the power −1/2."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from curvlab.linalg.averages import newest_weight
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Fraction, NotNegative, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.preconditioner import Preconditioner

#: an eps below this may turn a gradient without a second moment into infinity
LEAST_EPS = 1e-16


@dataclass
class AdamState:
    """Changed by every ``observe``."""

    second: BlockVector  #: v̂, the weighted mean of all squared gradients so far
    count: int = 0  #: gradients seen


@dataclass(frozen=True)
class Adam(Preconditioner[AdamState]):
    """``v ↦ v / (√v̂ + eps)``, v̂ being the mean of squared gradients; the damping λ is not used.

    The t-th gradient g moves v̂ by ``(1 − β)/(1 − βᵗ) · (g² − v̂)``.  That is Adam's moving average with
    its bias correction folded in: the weights of all gradients seen always add up to one.  Changes
    on every ``observe``.  Costs two passes over the parameters to observe, three to apply; holds one
    scalar per parameter.  Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1.
    """

    separable = True

    beta: Fraction = 0.999  #: β₂, decay of the mean of squared gradients, in [0, 1)
    eps: NotNegative = 1e-8  #: added to the root, in units of the gradient; ≥ 0

    def __post_init__(self) -> None:
        check_bounds(self)

    def fallible(self, state: AdamState, step: int) -> bool:
        return self.eps < LEAST_EPS

    def init(self, like: BlockVector, ctx: Context) -> AdamState:
        return AdamState(like.zeros_like())

    def observe(self, state: AdamState, seen: Evaluation, ctx: Context) -> None:
        state.count += 1
        share = newest_weight(self.beta, state.count)
        g = seen.gradient.flat
        # not lerp_: that would need g² in a buffer of its own
        ctx.storage.updated_(
            state.second.flat, lambda s: s.mul_(1 - share).addcmul_(g, g, value=share), g.dtype
        )

    def apply(self, state: AdamState, v: BlockVector, ctx: Context) -> Solve:
        x = v.empty_like()
        torch.sqrt(state.second.flat.to(v.dtype), out=x.flat).add_(self.eps)
        torch.div(v.flat, x.flat, out=x.flat)
        return Solve(x)
