"""The standings of a race as tables of words, and as plain values for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from curvlab.comparing.words import document as comparison_values
from curvlab.comparing.words import spread_in_words
from curvlab.races.profile import FACTORS, share_within
from curvlab.races.race import chosen_in_words
from curvlab.races.standings import Place, Standings, TaskStandings

#: columns of a task's table
COLUMNS = ("", "method", "reached", "steps", "examples", "seconds", "p", "setting")


def task_table(task: TaskStandings, level: float) -> list[list[str]]:
    """Rows under ``COLUMNS``; a p-value that is at most ``level`` has an asterisk."""
    return [_row(number, place, level) for number, place in enumerate(task.places, start=1)]


def _row(number: int, place: Place, level: float) -> list[str]:
    row = place.row
    several = len(row.runs) > 1
    axes = [spread_in_words(row.to_target(axis), several) for axis in ("steps", "examples", "seconds")]
    p = "–" if place.p is None else f"{place.p:.3g}{' *' if place.p <= level else ''}"
    settings = chosen_in_words(place.settings) or "–"
    return [str(number), place.method, f"{row.count}/{len(row.runs)}", *axes, p, settings]


def heading(task: TaskStandings) -> str:
    """The task and what counts as reached."""
    return f"{task.comparison.task}: to {task.comparison.target}"


def profile_table(found: Standings) -> tuple[list[str], list[list[str]]]:
    """The share of tasks on which a method is within a factor of the best, the best methods first."""
    columns = ["method", *(f"within {factor:g}×" for factor in FACTORS)]
    shares = {name: [share_within(f, own) for f in FACTORS] for name, own in found.ratios.items()}
    ordered = sorted(shares, key=lambda name: [-share for share in shares[name]])
    return columns, [[name, *(f"{share:.0%}" for share in shares[name])] for name in ordered]


def document(found: Standings) -> dict[str, Any]:
    """Everything but the curves, for ``--json``; an infinite number is ``null``."""
    values = comparison_values(found.comparison)
    return {
        "by": found.by,
        "tasks": [
            {
                **{key: of_task[key] for key in ("task", "metric", "more_is_better", "target")},
                "standings": [
                    {
                        "method": place.method,
                        "settings": dict(place.settings),
                        "p": place.p,
                        **{key: of_row[key] for key in _KEPT},
                    }
                    for place, of_row in zip(task.places, of_task["configurations"], strict=True)
                ],
            }
            for task, of_task in zip(found.tasks, values["tasks"], strict=True)
        ],
        "ratios": {name: _finite(own) for name, own in found.ratios.items()},
        "troubled": values["troubled"],
        "notes": values["notes"],
    }


_KEPT = ("reached", "steps", "examples", "seconds", "best", "runs")


def _finite(values: Sequence[float]) -> list[float | None]:
    return [None if math.isinf(value) else value for value in values]
