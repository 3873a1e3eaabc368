"""A comparison and a list of runs as rows of words, and as plain values for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from curvlab.comparing.comparison import Comparison, Row, Spread, TaskComparison
from curvlab.comparing.configurations import by_configuration, labels
from curvlab.comparing.outline import Outline
from curvlab.comparing.record import Reached, Record
from curvlab.errors import CurvlabError

#: columns of `curvlab runs`
RUNS = ("run", "method", "task", "seed", "best", "state", "what differs")

_PREFIXES = ("", "k", "M", "G", "T", "P")


def short(value: float) -> str:
    """A count or a time in four digits or fewer: ``128``, ``1.28M``, ``0.0312``; ``∞``."""
    if math.isinf(value):
        return "∞"
    size, k = abs(value), 0
    if size < 1e4:
        return f"{value:.0f}" if value == round(value) else f"{value:.3g}"
    while size >= 1e3 and k < len(_PREFIXES) - 1:
        size, k = size / 1e3, k + 1
    return f"{math.copysign(size, value):.3g}{_PREFIXES[k]}"


def spread_in_words(spread: Spread | None, several: bool, mark: str = "") -> str:
    """``46 (40–∞)``: the median, and the range if there are several runs."""
    if spread is None:
        return "–"
    if not several:
        return f"{mark}{short(spread.median)}"
    return f"{mark}{short(spread.median)} ({short(spread.least)}–{short(spread.most)})"


def _value(spread: Spread | None, several: bool) -> str:
    if spread is None:
        return "–"
    if not several:
        return f"{spread.median:.4g}"
    return f"{spread.median:.4g} ({spread.least:.4g}–{spread.most:.4g})"


def table(compared: TaskComparison, letters: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of one task; product-examples only if a method takes products."""
    products = any(row.product_examples is not None for row in compared.rows)
    columns = ["", "reached", "steps", "examples", "seconds"]
    columns += ["product-examples"] if products else []
    columns += [f"best {compared.metric}", "configuration"]
    rows = []
    for letter, row in zip(letters, compared.rows, strict=True):
        several = len(row.runs) > 1
        cells = [letter, f"{row.count}/{len(row.runs)}"]
        cells += [spread_in_words(row.to_target(axis), several) for axis in ("steps", "examples", "seconds")]
        if products:
            mark = "" if row.exact else "~"
            cells.append(spread_in_words(row.product_examples, several, mark))
        rows.append([*cells, _value(row.best_values, several), row.label])
    return columns, rows


def heading(compared: TaskComparison) -> str:
    """The task, and which target the columns count to."""
    if compared.target is None:
        return f"{compared.task}: no run has the metric {compared.metric}, so there is no target"
    why = "" if compared.chosen else ", the worst of the configurations' best values; choose one by --target"
    return f"{compared.task}: to {compared.target}{why}"


def document(compared: Comparison) -> dict[str, Any]:
    """Everything but the curves, for ``--json``."""
    return {
        "tasks": [_task_values(task) for task in compared.tasks],
        "troubled": [
            {"run": str(run.path), "state": run.state, "trouble": run.trouble} for run in compared.troubled
        ],
        "notes": list(compared.notes),
    }


def _task_values(task: TaskComparison) -> dict[str, Any]:
    target = task.target
    return {
        "task": task.task,
        "metric": task.metric,
        "more_is_better": task.more_is_better,
        "target": None if target is None else str(target),
        "target_value": None if target is None else target.value,
        "target_given": task.chosen,
        "configurations": [_row_values(row) for row in task.rows],
    }


def _row_values(row: Row) -> dict[str, Any]:
    return {
        "configuration": row.label,
        "method": row.method,
        "differs": dict(row.differs),
        "reached": row.count,
        "steps": _spread_values(row.to_target("steps")),
        "examples": _spread_values(row.to_target("examples")),
        "seconds": _spread_values(row.to_target("seconds")),
        "product_examples": _spread_values(row.product_examples),
        "product_examples_exact": row.exact,
        "best": _spread_values(row.best_values),
        "runs": [
            _run_values(run, reached, best)
            for run, reached, best in zip(row.runs, row.reached, row.best, strict=True)
        ],
    }


def _run_values(run: Record, reached: Reached | None, best: tuple[float, float] | None) -> dict[str, Any]:
    about = run.outline
    return {
        "run": str(about.path),
        "seed": about.seed,
        "state": about.state,
        "reached": None if reached is None else dict(vars(reached)),
        "best": None if best is None else {"value": best[0], "step": best[1]},
    }


def _spread_values(spread: Spread | None) -> Mapping[str, float] | None:
    """Infinite numbers become ``null`` in JSON: half of the runs, or one, did not get there."""
    return None if spread is None else dict(vars(spread))


def listed(outlines: Sequence[Outline]) -> list[dict[str, Any]]:
    """Every run with its name, method, task, seed, what differs, best value and state."""
    told = dict(zip(map(id, outlines), _differing(outlines), strict=True))
    found = []
    for one in outlines:
        best, trouble = _best(one)
        found.append(
            {
                "run": str(one.path),
                "method": one.method,
                "task": one.task,
                "seed": one.seed,
                "best": best,
                "state": one.state,
                "differs": told[id(one)].removeprefix(one.method).strip(),
                "trouble": trouble,
            }
        )
    return found


def runs_row(run: Mapping[str, Any], name: str) -> list[str]:
    """A line under ``RUNS``."""
    best = run["best"]
    return [
        name,
        str(run["method"]),
        str(run["task"]),
        "–" if run["seed"] is None else str(run["seed"]),
        f"{best['metric']} {best['value']:.4g}" if best else "–",
        str(run["state"]),
        str(run["differs"]),
    ]


def _differing(outlines: Sequence[Outline]) -> list[str]:
    """The label of each run's configuration among those of its task."""
    found: dict[int, str] = {id(one): "" for one in outlines}
    tasks: dict[str, list[Outline]] = {}
    for one in outlines:
        if one.resolved:
            tasks.setdefault(one.task, []).append(one)
    for runs in tasks.values():
        groups = by_configuration(runs)
        for label, group in zip(labels([g[0] for g in groups]), groups, strict=True):
            found.update({id(one): label for one in group})
    return [found[id(one)] for one in outlines]


def _best(one: Outline) -> tuple[dict[str, Any] | None, str]:
    """The best value as the summary has it; of a run without one, from its metrics, and what is wrong."""
    if one.summary or not one.resolved:
        return one.summary.get("best"), one.trouble
    metric, more_is_better = one.judged_by
    try:
        found = Record.of(one).best(metric, more_is_better)
    except CurvlabError as error:
        return None, f"{one.trouble}; {error}"
    if found is None:
        return None, one.trouble
    return {"metric": metric, "value": found[0], "step": int(found[1])}, one.trouble
