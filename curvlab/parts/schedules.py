"""Schedules of a setting over steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Count, Natural, NotNegative, Positive, check_bounds
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


@dataclass(frozen=True)
class WarmUp(Schedule):
    """A factor that rises in equal steps to 1: ``(step + 1) / steps``, then 1."""

    steps: Count

    def __post_init__(self) -> None:
        check_bounds(self)

    def __call__(self, step: int) -> float:
        return min((step + 1) / self.steps, 1.0)


@dataclass(frozen=True)
class Power(Schedule):
    """A power cool-down: ``end + (start − end) (1 − step / steps)^power``, then ``end``.

    ``power = 1`` is a line.  Source: the rate of the modded-nanogpt records, track 3 (2026), with power 1.2.
    """

    start: NotNegative
    end: NotNegative
    steps: Count
    power: Positive = 1.2

    def __post_init__(self) -> None:
        check_bounds(self)

    def __call__(self, step: int) -> float:
        left = 1.0 - min(step / self.steps, 1.0)
        return self.end + (self.start - self.end) * math.pow(left, self.power)


@dataclass(frozen=True)
class WarmUpStableDecay(Schedule):
    """Up to ``peak`` in ``warmup`` equal steps, along, and to ``end`` in the last ``decay`` of all ``steps``.

    The warm-up is that of ``cosine``, the decay that of ``power``: a line where ``power`` is 1.  Source: Hu
    et al. 2024, MiniCPM, arXiv 2404.06395.
    """

    peak: NotNegative
    steps: Count
    decay: Count
    warmup: Natural = 0
    end: NotNegative = 0.0
    power: Positive = 1.0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.warmup + self.decay > self.steps:
            what = f"warmup + decay = {self.warmup + self.decay} is more than steps = {self.steps}"
            raise ConfigError(
                Fault(what, path="steps", hint=f"use steps of at least {self.warmup + self.decay}")
            )

    def __call__(self, step: int) -> float:
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        since = step - (self.steps - self.decay)
        if since < 0:
            return float(self.peak)
        return self.end + (self.peak - self.end) * math.pow(max(1.0 - since / self.decay, 0.0), self.power)
