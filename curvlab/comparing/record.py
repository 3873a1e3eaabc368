"""The metrics of one run: its curves, the best value, and where a target was reached."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from curvlab.comparing.outline import Outline
from curvlab.comparing.target import Target
from curvlab.reporting.rundir import RunDir

Over = Literal["steps", "seconds", "examples"]

#: where a line is in its run; everything else in it is a metric
POSITION = frozenset({"kind", "step", "epoch", "examples", "seconds"})


@dataclass(frozen=True, eq=False)
class Curve:
    """One metric of a run: where it was measured, and its values, NaN where a value was not finite."""

    steps: Sequence[float]
    examples: Sequence[float]
    seconds: Sequence[float]
    values: Sequence[float]

    def over(self, axis: Over) -> Sequence[float]:
        """The positions along one axis."""
        return {"steps": self.steps, "examples": self.examples, "seconds": self.seconds}[axis]


@dataclass(frozen=True)
class Reached:
    """Where a run first met a target.

    ``product_examples`` counts products with the curvature matrix times their examples, ``None`` for methods
    without products.  ``exact`` says whether every step was logged; otherwise a logged step stands for those
    since the one before.
    """

    step: float
    examples: float
    seconds: float
    product_examples: float | None
    exact: bool


@dataclass(frozen=True, eq=False)
class Record:
    """A run with its metrics."""

    outline: Outline
    steps: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Mapping[str, Any]]

    @classmethod
    def of(cls, outline: Outline) -> Record:
        """Read ``metrics.jsonl``; raises ``RunFolderError`` naming a damaged line."""
        lines = list(RunDir(outline.path).lines("metrics.jsonl"))
        placed = [line for line in lines if is_number(line.get("step"))]
        return cls(
            outline,
            [line for line in placed if line.get("kind") == "step"],
            [line for line in placed if line.get("kind") == "eval"],
        )

    @cached_property
    def metrics(self) -> frozenset[str]:
        """The names of what was measured: of evaluations and of steps."""
        return frozenset(
            name
            for lines in (self.steps, self.evaluations)
            for line in lines
            for name, value in line.items()
            if name not in POSITION and is_number(value)
        )

    def curve(self, metric: str) -> Curve | None:
        """A metric of evaluations, or else of steps; ``None`` if the run has none of that name."""
        for lines in (self.evaluations, self.steps):
            having = [line for line in lines if metric in line]
            if not any(is_number(line[metric]) for line in having):
                continue
            return Curve(
                [float(line["step"]) for line in having],
                [self.examples_of(line) for line in having],
                [_given(line, "seconds", math.nan) for line in having],
                [number(line[metric]) for line in having],
            )
        return None

    def examples_of(self, line: Mapping[str, Any]) -> float:
        """Examples seen by a line; an evaluation line does not say, and the steps around it do."""
        return _given(line, "examples", self._examples.at(line["step"]))

    def best(self, metric: str, more_is_better: bool) -> tuple[float, float] | None:
        """The best finite value of a metric and its step."""
        found = self.curve(metric)
        pairs = [] if found is None else list(zip(found.values, found.steps, strict=True))
        finite = [pair for pair in pairs if math.isfinite(pair[0])]
        if not finite:
            return None
        return max(finite, key=lambda p: (p[0], -p[1])) if more_is_better else min(finite)

    def reached(self, target: Target) -> Reached | None:
        """Where the target is first met; ``None`` if it is not."""
        curve = self.curve(target.metric)
        if curve is None:
            return None
        for k, value in enumerate(curve.values):
            if target.met_by(value):
                step, products = curve.steps[k], self._product_examples
                return Reached(
                    step,
                    curve.examples[k],
                    curve.seconds[k],
                    None if products is None else products.at(step),
                    len(self.steps) > 0 and self.steps[-1]["step"] == len(self.steps),
                )
        return None

    @cached_property
    def _examples(self) -> Counter:
        known = [(line["step"], line["examples"]) for line in self.steps if is_number(line.get("examples"))]
        return Counter.through(known)

    @cached_property
    def _product_examples(self) -> Counter | None:
        total, before, known = 0.0, 0.0, []
        for line in self.steps:
            if is_number(line.get("product_examples")):
                total += (line["step"] - before) * line["product_examples"]
                known.append((line["step"], total))
            before = line["step"]
        return Counter.through(known) if known else None


@dataclass(frozen=True, eq=False)
class Counter:
    """What was counted by some steps; between them along a line, and beyond them at the mean rate."""

    steps: Sequence[float]
    totals: Sequence[float]

    @classmethod
    def through(cls, known: Sequence[tuple[float, float]]) -> Counter:
        """Zero at step 0, and these totals."""
        later = [(float(step), float(total)) for step, total in known if step > 0]
        return cls([0.0, *(step for step, _ in later)], [0.0, *(total for _, total in later)])

    def at(self, step: float) -> float:
        """The total by a step; NaN if nothing was counted."""
        k = bisect_left(self.steps, step)
        if k < len(self.steps) and self.steps[k] == step:
            return self.totals[k]
        if k == len(self.steps):
            last = self.steps[-1]
            return self.totals[-1] * step / last if last else math.nan
        x, x1, y, y1 = self.steps[k - 1], self.steps[k], self.totals[k - 1], self.totals[k]
        return y + (y1 - y) * (step - x) / (x1 - x)


def is_number(value: Any) -> bool:
    """Whether a value of a line is a number; a truth value is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number(value: Any) -> float:
    """A finite number, or NaN: JSON has ``null`` for others."""
    return float(value) if is_number(value) and math.isfinite(value) else math.nan


def _given(line: Mapping[str, Any], key: str, otherwise: float) -> float:
    return float(line[key]) if is_number(line.get(key)) else otherwise
