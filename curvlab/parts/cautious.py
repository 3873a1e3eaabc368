"""Transform: weight decay, and updates, only where signs agree."""

from __future__ import annotations

from dataclasses import dataclass

from curvlab.linalg.matrices import parameters
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import NotNegative, check_bounds
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.step import At, Transform


@dataclass(frozen=True)
class Cautious(Transform[None]):
    """``v + rate · 1[v θ ≥ 0] · θ``, entry by entry: decay only where the update shrinks the weight anyway.

    Cautious weight decay (Chen et al. 2025, arXiv 2510.12402, algorithm 1); it belongs last on the update,
    where the step's rate multiplies it.  Decay never works against an entry of the update.

    With ``mask``, first the entries of v whose sign is not that of the gradient become 0.  The others are
    multiplied by ``n / (k + 1)``: n entries of a parameter, k of them kept (Liang et al. 2024, arXiv
    2411.16085, algorithm 1).  Without decay and mask nothing changes.  Costs a few passes; holds nothing.
    """

    fallible = False
    separable = True

    rate: NotNegative | Schedule = 0.0  #: decay, times the step's rate
    mask: bool = False  #: whether entries of the update against the gradient are left out

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, like: BlockVector) -> None:
        return None

    def __call__(self, state: None, v: BlockVector, at: At) -> BlockVector:
        rate = at_step(self.rate, at.step)
        if self.mask:
            v = v.owned()
            gradients = (g for _, _, g in parameters(at.gradient))
            for (_, _, u), g in zip(parameters(v), gradients, strict=True):
                kept = u.sign() == g.sign()
                kept &= u != 0
                u.mul_(kept).mul_(u.numel() / (kept.sum().to(u.dtype) + 1))
        if not rate:
            return v
        decay = v.zeros_like()
        at.add_theta(decay, rate)
        # products of small numbers would underflow to 0, where the signs say nothing
        decay.flat.masked_fill_(v.flat.sign() == -decay.flat.sign(), 0.0)
        return v.owned().add_(decay)
