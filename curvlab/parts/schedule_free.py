"""Schedule-free averaging: gradients are taken between the method's own iterates and their average."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.parts.weight_means import wide_copy
from curvlab.protocols.average import Average, Taken, Weights
from curvlab.protocols.bounds import NotNegative, Portion, check_bounds


@dataclass
class ScheduleFreeState:
    """The method's own iterate z, the average x, by parameter, and the sum of the weights of all steps."""

    z: dict[str, Tensor]
    x: dict[str, Tensor]
    total: float = 0.0


@dataclass(frozen=True)
class ScheduleFree(Average[ScheduleFreeState]):
    """Schedule-Free learning around any method (Defazio et al. 2024, arXiv 2405.15682).

    The model's parameters are ``y = (1 − β) z + β x`` while it trains.  A step of the method from y to y + d
    moves ``z ← z + d`` and ``x ← (1 − c) x + c z`` with ``c = w / Σw``, ``w = rate^power``; then y is made
    anew.  x is evaluated.  It takes the place of a decreasing rate and of momentum: use a constant rate after
    a warm-up, and no momentum.  β = 0 leaves the method as it is and averages its iterates; β = 1 takes
    gradients at the average.

    Holds two vectors of weights in float32 at least; costs three passes over them a step.  d is read from the
    parameters, so a precision that keeps a master copy of them is refused.
    """

    moves = True

    beta: Portion = 0.9  #: β, weight of the average in the point where gradients are taken
    power: NotNegative = 2.0  #: a step's weight in the average is its rate to this power

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, theta: Weights) -> ScheduleFreeState:
        return ScheduleFreeState(wide_copy(theta), wide_copy(theta))

    def stepped(self, state: ScheduleFreeState, theta: Weights, taken: Taken) -> None:
        weight = taken.lr**self.power
        state.total += weight
        share = weight / state.total if state.total else 1.0
        for name, z in state.z.items():
            x, parameter = state.x[name], theta[name]
            # y as it was written, so that d holds whatever has moved the parameter since
            z.add_(parameter.to(z.dtype).sub_(self._y(z, x).to(parameter.dtype).to(z.dtype)))
            x.lerp_(z, share)
            parameter.copy_(self._y(z, x))

    def weights(self, state: ScheduleFreeState, theta: Weights) -> Weights:
        return state.x

    def _y(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.lerp(z, x, self.beta)
