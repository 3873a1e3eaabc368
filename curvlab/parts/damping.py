"""Damping policies: λ of ``C + λI``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Bounds, Count, NotNegative, Positive, check_bounds
from curvlab.protocols.cadence import is_due
from curvlab.protocols.evidence import StepOutcome
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.step import Damping


@dataclass(frozen=True)
class Constant(Damping[None]):
    """The same λ always, or a schedule of it."""

    separable = True

    value: NotNegative | Schedule = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self) -> None:
        return None

    def at(self, state: None, step: int) -> float:
        return at_step(self.value, step)


@dataclass
class LambdaState:
    """λ, and the reduction ratio it was last changed for."""

    damping: float
    ratio: float


@dataclass(frozen=True)
class LevenbergMarquardt(Damping[LambdaState]):
    """λ by the reduction ratio ρ = actual / predicted change of the loss (Martens 2010, §4.1).

    Every ``interval`` steps: ρ < ``low`` (or not finite, or the step rejected) multiplies λ by ``factor``,
    ρ > ``high`` divides it.  The prediction is that of the *undamped* quadratic model.
    """

    initial: Positive = 1.0
    factor: Annotated[float, Bounds(above=1)] = 1.5
    interval: Count = 1
    low: float = 0.25
    high: float = 0.75
    minimum: Positive = 1e-8
    maximum: float = 1e8

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.low < self.high:
            raise ConfigError(Fault(f"low = {self.low!r} must be below high = {self.high!r}", path="low"))
        if not self.minimum <= self.initial <= self.maximum:
            raise ConfigError(
                Fault(f"initial = {self.initial!r} must lie between minimum and maximum", path="initial")
            )

    def needs(self, step: int) -> Needs:
        return Needs(products=1, losses=1) if self._learns(step) else GRADIENT_ONLY

    def init(self) -> LambdaState:
        return LambdaState(self.initial, math.nan)

    def at(self, state: LambdaState, step: int) -> float:
        return state.damping

    def learn(self, state: LambdaState, what: StepOutcome, step: int) -> None:
        if not self._learns(step) or (what.step.accepted and what.ratio is None):
            return
        state.ratio = math.nan if what.ratio is None else what.ratio  # a rejected step has none
        if not what.step.accepted or not state.ratio >= self.low:  # also NaN
            state.damping = min(state.damping * self.factor, self.maximum)
        elif state.ratio > self.high:
            state.damping = max(state.damping / self.factor, self.minimum)

    def _learns(self, step: int) -> bool:
        return is_due(step + 1, self.interval)
