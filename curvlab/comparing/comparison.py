"""A comparison: per task, every configuration with its runs, when they reached a target, and their best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median
from typing import Any

from curvlab.comparing.configurations import by_configuration, differences, labels
from curvlab.comparing.outline import DAMAGED, Outline
from curvlab.comparing.record import Over, Reached, Record
from curvlab.comparing.target import Target
from curvlab.errors import RunFolderError, UsageError

#: facts of a manifest that change how long a step takes, and what a manifest without them means
_MACHINE = {
    "processes": 1,
    **dict.fromkeys(("processor", "threads", "device", "torch", "curvlab"), "unknown"),
}


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest over runs; infinite where runs did not get there."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value; NaN counts as infinite."""
        known = [math.inf if math.isnan(v) else v for v in values]
        return cls(median(known), min(known), max(known))


@dataclass(frozen=True, eq=False)
class Row:
    """One configuration and its runs.

    ``differs`` are the resolved settings that tell it from the others of its task.  ``reached`` and ``best``
    stand beside ``runs``: where the target was met, and the best value with its step.
    """

    label: str
    method: str
    differs: dict[str, Any]
    runs: Sequence[Record]
    reached: Sequence[Reached | None]
    best: Sequence[tuple[float, float] | None]

    @property
    def count(self) -> int:
        """How many runs met the target."""
        return sum(one is not None for one in self.reached)

    def to_target(self, axis: Over) -> Spread | None:
        """Steps, examples or seconds to the target; ``None`` if no run met it."""
        return self._spread(lambda one: float(getattr(one, _FIELDS[axis])))

    @property
    def product_examples(self) -> Spread | None:
        """Product-examples to the target; ``None`` if no run met it or the method takes no products."""
        if all(one is None or one.product_examples is None for one in self.reached):
            return None
        return self._spread(lambda one: math.inf if one.product_examples is None else one.product_examples)

    @property
    def exact(self) -> bool:
        """Whether product-examples were logged at every step."""
        return all(one.exact for one in self.reached if one is not None)

    @cached_property
    def best_values(self) -> Spread | None:
        """The best values of the runs that have one."""
        values = [pair[0] for pair in self.best if pair is not None]
        return Spread.of(values) if values else None

    def _spread(self, of: Callable[[Reached], float]) -> Spread | None:
        if not self.count:
            return None
        return Spread.of([math.inf if one is None else of(one) for one in self.reached])


_FIELDS: dict[Over, str] = {"steps": "step", "examples": "examples", "seconds": "seconds"}


@dataclass(frozen=True, eq=False)
class TaskComparison:
    """The configurations of one task, the soonest at the target first.

    ``chosen`` says whether the user gave the target; otherwise it is the worst of the rows' median best
    values, which every row with a typical run reaches.  It is ``None`` if no run has the metric.
    """

    task: str
    metric: str
    more_is_better: bool
    target: Target | None
    chosen: bool
    rows: Sequence[Row]


@dataclass(frozen=True, eq=False)
class Comparison:
    """All tasks; ``troubled`` are runs that are not finished or cannot be read, ``notes`` what to know."""

    tasks: Sequence[TaskComparison]
    troubled: Sequence[Outline]
    notes: Sequence[str]


def compared(outlines: Sequence[Outline], target: Target | None, axis: Over) -> Comparison:
    """Compare runs; rows are sorted by the median of ``axis`` to the target.

    Raises ``RunFolderError`` if no run can be read, and ``UsageError`` if none has the target's metric.
    """
    records, troubled = _records(outlines)
    if not records:
        listed = "; ".join(f"{run.path}: {run.trouble}" for run in troubled[:5])
        more = f"; and {len(troubled) - 5} more" if len(troubled) > 5 else ""
        raise RunFolderError(f"none of {len(outlines)} runs can be compared: {listed}{more}")
    if target is not None:
        _require_metric(target, records)
    tasks: dict[str, list[Record]] = {}
    for record in records:
        tasks.setdefault(record.outline.task, []).append(record)
    found = [_task(name, of_task, target, axis) for name, of_task in tasks.items()]
    return Comparison(found, troubled, machine_notes(records))


def _records(outlines: Sequence[Outline]) -> tuple[list[Record], list[Outline]]:
    records, troubled = [], []
    for one in outlines:
        if one.state == DAMAGED:
            troubled.append(one)
            continue
        try:
            record = Record.of(one)
        except RunFolderError as error:
            troubled.append(Outline(one.path, DAMAGED, str(error)))
            continue
        if record.metrics:
            records.append(record)
        if one.trouble or not record.metrics:
            lacking = "" if record.metrics else "its metrics.jsonl holds no metrics"
            words = "; ".join(word for word in (lacking, one.trouble) if word)
            troubled.append(Outline(one.path, one.state, words))
    return records, troubled


def _require_metric(target: Target, records: Sequence[Record]) -> None:
    known = sorted(frozenset().union(*(record.metrics for record in records)))
    if target.metric not in known:
        raise UsageError(
            f"--target {target}: none of these runs has the metric {target.metric}; "
            f"they have {', '.join(known)}"
        )


def _task(name: str, records: Sequence[Record], given: Target | None, axis: Over) -> TaskComparison:
    record_of = {id(record.outline): record for record in records}
    groups = by_configuration([record.outline for record in records])
    firsts = [group[0] for group in groups]
    runs = [[record_of[id(run)] for run in group] for group in groups]
    if given is None:
        metric, more_is_better = firsts[0].judged_by
    else:
        metric, more_is_better = given.metric, given.more_is_better
    best = [[record.best(metric, more_is_better) for record in group] for group in runs]
    target = given or _reachable(metric, more_is_better, best)
    differing = differences([run.resolved for run in firsts])
    rows = [
        Row(
            label,
            group[0].outline.method,
            differs,
            group,
            [None if target is None else record.reached(target) for record in group],
            bests,
        )
        for label, differs, group, bests in zip(labels(firsts), differing, runs, best, strict=True)
    ]
    rows.sort(key=lambda row: order(row, axis, more_is_better))
    return TaskComparison(name, metric, more_is_better, target, given is not None, rows)


def order(row: Row, axis: Over, more_is_better: bool) -> tuple[float, float, float]:
    """What rows are sorted by: the median to the target, the least, then the best value."""
    spread, best = row.to_target(axis), row.best_values
    value = math.inf if best is None else -best.median if more_is_better else best.median
    if spread is None:
        return math.inf, math.inf, value
    return spread.median, spread.least, value


def _reachable(
    metric: str, more_is_better: bool, best: Sequence[Sequence[tuple[float, float] | None]]
) -> Target | None:
    medians = [
        median(pair[0] for pair in pairs if pair is not None)
        for pairs in best
        if any(pair is not None for pair in pairs)
    ]
    if not medians:
        return None
    worst = min(medians) if more_is_better else max(medians)
    return Target(metric, worst, more_is_better)


def machine_notes(records: Sequence[Record]) -> list[str]:
    """What makes the seconds of runs incomparable, in words."""
    found = []
    for fact, silence in _MACHINE.items():
        values = sorted({str(record.outline.manifest.get(fact, silence)) for record in records})
        if len(values) > 1:
            shown = ", ".join(values[:4]) + (", …" if len(values) > 4 else "")
            found.append(f"the runs differ in {fact} ({shown}): compare their seconds with care")
    return found
