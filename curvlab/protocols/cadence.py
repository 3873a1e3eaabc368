"""Cadence: what happens every so many steps."""

from __future__ import annotations

from bisect import bisect_left
from functools import lru_cache
from typing import TypeAlias

from curvlab.protocols.bounds import Count
from curvlab.protocols.schedule import Schedule

#: a number of steps between two times, or a schedule of it, rounded to a whole number ≥ 1
Interval: TypeAlias = Count | Schedule


def is_due(step: int, every: int | Schedule) -> bool:
    """Whether something that happens every ``every`` steps happens in step ``step``; in step 0 it does.

    With a schedule T, the step after a due step s is s + T(s).  It follows from the schedule alone, so a run
    that is resumed has the same steps.
    """
    if not isinstance(every, Schedule):
        return step % every == 0
    due = _due_steps(every)
    while due[-1] < step:
        due.append(due[-1] + interval_at(every, due[-1]))
    return due[bisect_left(due, step)] == step


def interval_at(every: int | Schedule, step: int) -> int:
    """The number of steps between two times, as it is at ``step``."""
    return max(round(every(step)), 1) if isinstance(every, Schedule) else every


@lru_cache(maxsize=64)
def _due_steps(schedule: Schedule) -> list[int]:
    """The due steps of a schedule that are known, which ``is_due`` adds to."""
    return [0]
