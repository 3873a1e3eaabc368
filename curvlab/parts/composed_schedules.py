"""Schedules made of others: one times the other, one after the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Count, NotNegative, check_bounds
from curvlab.protocols.schedule import Schedule, at_step


@dataclass(frozen=True)
class Product(Schedule):
    """The product of its factors, numbers or schedules: a warm-up times a cool-down, a peak times both."""

    factors: tuple[NotNegative | Schedule, ...]

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.factors:
            raise ConfigError(Fault("factors is empty", path="factors", hint="give one factor at least"))

    def __call__(self, step: int) -> float:
        return math.prod(at_step(factor, step) for factor in self.factors)


@dataclass(frozen=True)
class Sequence(Schedule):
    """Its parts one after the other, numbers or schedules; each counts steps from its own beginning.

    ``steps`` holds how many steps each part takes, all but the last, which stays.
    """

    parts: tuple[NotNegative | Schedule, ...]
    steps: tuple[Count, ...] = ()

    def __post_init__(self) -> None:
        check_bounds(self)
        if len(self.steps) != len(self.parts) - 1:
            what = f"steps has {len(self.steps)} numbers; {len(self.parts)} parts need {len(self.parts) - 1}"
            hint = "give the length of every part but the last"
            raise ConfigError(Fault(what, path="steps", hint=hint))

    def __call__(self, step: int) -> float:
        begun = 0
        for part, length in zip(self.parts, self.steps, strict=False):
            if step < begun + length:
                return at_step(part, step - begun)
            begun += length
        return at_step(self.parts[-1], step - begun)
