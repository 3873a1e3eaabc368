"""Schedules: a float setting that is a function of the step."""

from __future__ import annotations

from abc import ABC, abstractmethod


class Schedule(ABC):
    """A number per step; frozen, without state."""

    @abstractmethod
    def __call__(self, step: int) -> float:
        """The value at ``step`` (from 0)."""


def at_step(value: float | Schedule, step: int) -> float:
    """The value of a setting that may or may not be scheduled."""
    return value(step) if isinstance(value, Schedule) else float(value)
