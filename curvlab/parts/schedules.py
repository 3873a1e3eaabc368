"""Schedules of a setting over steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Count, Natural, NotNegative, check_bounds
from curvlab.protocols.schedule import Schedule


@dataclass(frozen=True)
class Linear(Schedule):
    """From ``start`` to ``end`` in ``steps`` steps, then ``end``."""

    start: NotNegative
    end: NotNegative
    steps: Count

    def __post_init__(self) -> None:
        check_bounds(self)

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up to ``peak`` in ``warmup`` steps, then half a cosine down to ``end`` at ``steps``."""

    peak: NotNegative
    steps: Count
    warmup: Natural = 0
    end: NotNegative = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.steps <= self.warmup:
            what = f"steps = {self.steps!r} must be at least {self.warmup + 1}, one more than warmup"
            raise ConfigError(Fault(what, path="steps"))

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = min((step - self.warmup) / (self.steps - self.warmup), 1.0)
        return self.end + (self.peak - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))
