"""The suite of damping policies."""

from __future__ import annotations

import math
from typing import Any

from curvlab.engine.state import export
from curvlab.protocols.evidence import StepOutcome
from curvlab.protocols.needs import Needs
from curvlab.protocols.step import Damping
from curvlab.testing.conformance.bench import Bench, direct, outcome
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.exercised import Found, Stateful

#: steps of one policy: enough that a factor of a few overflows a float
MANY = 3000


class DampingConformance(Stateful):
    """λ over steps that went as predicted, better, worse, and not at all."""

    kind = "damping"
    part: Damping[Any]

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def begin(self) -> Any:
        return self.part.init()

    def advance(self, run: Any, step: int) -> Found:
        found = {"λ": self.part.at(run, step)}
        self._learn(run, step, (1.0, 0.1, math.nan, 0.5)[step % 4])
        return found

    def _learn(self, state: Any, step: int, ratio: float, *, accepted: bool = True) -> None:
        """One step of this reduction ratio, which is there only if it was asked for."""
        asks = self.part.needs(step)
        told = ratio if accepted and asks.products and asks.losses else None
        self.part.learn(state, what_came(accepted=accepted, ratio=told), step)

    def _after(self, ratio: float, *, accepted: bool = True, steps: int = MANY) -> list[float]:
        state, found = self.part.init(), []
        for k in range(steps):
            found.append(self.part.at(state, k))
            self._learn(state, k, ratio, accepted=accepted)
        return found

    @check()
    def check_obligations(self) -> None:
        """``at`` gives a float, ``needs`` are Needs, the same when asked again."""
        state = self.part.init()
        for step in (0, 1, 7, 1000):
            value, needs = self.part.at(state, step), self.part.needs(step)
            assert isinstance(value, float), f"{self.name}.at must return a float, not {value!r}"
            assert isinstance(needs, Needs), f"{self.name}.needs must return Needs, not {needs!r}"
            assert needs == self.part.needs(step), (
                f"{self.name}.needs({step}) differs between two calls with the same arguments"
            )

    @check()
    def check_finite(self) -> None:
        """λ is finite and not negative, whatever comes of thousands of steps."""
        courses = {
            "steps as predicted": self._after(1.0),
            "steps far better than predicted": self._after(1e6),
            "steps that raise the loss": self._after(-1.0),
            "ratios that are NaN": self._after(math.nan),
            "rejected steps": self._after(0.0, accepted=False),
        }
        for words, course in courses.items():
            wrong = [v for v in course if not (math.isfinite(v) and v >= 0)]
            assert not wrong, f"{self.name}: λ = {wrong[0]!r} after {words}"

    @check()
    def check_direction(self) -> None:
        """A policy that learns damps no less after bad steps, and no more after good ones."""
        constant = self._after(1.0, steps=1)[0]
        for words, course, sign in (
            ("steps that raise the loss", self._after(-1.0, steps=50), 1),
            ("rejected steps", self._after(0.0, accepted=False, steps=50), 1),
            ("steps as predicted", self._after(1.0, steps=50), -1),
        ):
            if not any(self.part.needs(k).losses for k in range(50)):
                return
            wrong = sign * (course[-1] - constant) < 0
            assert not wrong, f"{self.name}: λ goes from {constant:.4g} to {course[-1]:.4g} after {words}"

    @check()
    def check_pure(self) -> None:
        """Asking for λ does not move it."""
        state = self.part.init()
        self._learn(state, 0, 0.1)
        before = export(state)
        values = [self.part.at(state, 1) for _ in range(3)]
        assert len(set(values)) == 1, f"{self.name}.three calls of at(state, 1) return {values}"
        assert repr(export(state)) == repr(before), f"{self.name}.at changes its state"


def what_came(*, accepted: bool, ratio: float | None) -> StepOutcome:
    """What came of a step of a small network."""
    seen, solve = _step()
    return outcome(seen, solve, accepted=accepted, ratio=ratio)


def _step() -> Any:
    if not _known:
        bench = Bench.of(lambda layer: False, lambda block: None)
        _known.append((bench.evaluate(Needs(), 0), direct(bench.vector(0))))
    return _known[0]


_known: list[Any] = []
