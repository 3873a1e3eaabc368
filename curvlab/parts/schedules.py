"""Schedules of a setting over steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from curvlab.parts.settings import at_least, not_negative
from curvlab.protocols.schedule import Schedule


@dataclass(frozen=True)
class Linear(Schedule):
    """From ``start`` to ``end`` in ``steps`` steps, then ``end``."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        not_negative("start", self.start)
        not_negative("end", self.end)
        at_least("steps", self.steps, 1)

    def __call__(self, step: int) -> float:
        return self.start + (self.end - self.start) * min(step / self.steps, 1.0)


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear warm-up to ``peak`` in ``warmup`` steps, then half a cosine down to ``end`` at ``steps``."""

    peak: float
    steps: int
    warmup: int = 0
    end: float = 0.0

    def __post_init__(self) -> None:
        not_negative("peak", self.peak)
        not_negative("end", self.end)
        at_least("warmup", self.warmup, 0)
        at_least("steps", self.steps, self.warmup + 1)

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = min((step - self.warmup) / (self.steps - self.warmup), 1.0)
        return self.end + (self.peak - self.end) * 0.5 * (1.0 + math.cos(math.pi * progress))
