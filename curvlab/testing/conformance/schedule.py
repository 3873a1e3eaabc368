"""The suite of schedules."""

from __future__ import annotations

import math

from curvlab.protocols.schedule import Schedule
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.exercised import Exercised, Found

STEPS = (0, 1, 2, 10, 99, 1000, 10**6, 10**9)


class ScheduleConformance(Exercised):
    """A number for each step."""

    kind = "schedule"
    part: Schedule

    def exercise(self) -> Found:
        return {f"step {k}": self.part(k) for k in STEPS}

    @check()
    def check_number(self) -> None:
        """The value of every step, long after its end too, is a finite float."""
        name = type(self.part).__name__
        for step in STEPS:
            value = self.part(step)
            assert isinstance(value, float), f"{name}({step}) must return a float, not {value!r}"
            assert math.isfinite(value), f"{name}({step}) is {value}"

    @check()
    def check_without_memory(self) -> None:
        """A schedule has no state: the value of a step does not depend on what was asked before."""
        name, forth = type(self.part).__name__, {k: self.part(k) for k in STEPS}
        back = {k: self.part(k) for k in reversed(STEPS)}
        assert forth == back, (
            f"{name} returns {forth} when called in order of steps, and {back} in reverse order"
        )
