"""What came of one trial, read from its run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvlab.config.toml_text import inline
from curvlab.config.tree import Node
from curvlab.reporting.rundir import RunDir
from curvlab.trials.space import as_written
from curvlab.trials.trial import Trial

#: the state of a trial whose combination of settings no run can have
INVALID = "invalid"


@dataclass(frozen=True)
class Result:
    """A trial that is over.

    ``state`` is the reason of the run's end: ``finished``, ``stopped`` by a pruner, ``diverged``, ``failed``;
    or ``invalid``.  ``value`` is the best value of the task's metric, at ``step``; ``None`` if there is none.
    """

    name: str
    settings: Mapping[str, Any]
    state: str
    message: str = ""
    value: float | None = None
    step: int | None = None
    folder: Path | None = None
    configuration: str = ""

    @classmethod
    def of(cls, trial: Trial, folder: Path) -> Result:
        """From the summary of the run."""
        summary = RunDir(folder).summary
        best = summary.get("best") or {}
        reason, message = str(summary.get("exit_reason")), str(summary.get("message", ""))
        value, step = best.get("value"), best.get("step")
        return cls(trial.name, trial.settings, reason, message, value, step, folder, _nameless(trial))


def _nameless(trial: Trial) -> str:
    """The trial's configuration without the name that it had as a trial."""
    tree = trial.layers.tree
    run = tree.table["run"].without("name")
    return as_written(Node({**tree.table, "run": run}, tree.origin))


def ranked(results: Sequence[Result], more_is_better: bool) -> list[Result]:
    """The finished trials with the best first, then the others; equal ones as they were made."""
    sign = -1 if more_is_better else 1

    def order(one: Result) -> tuple[bool, bool, float]:
        return one.state != "finished", one.value is None, 0.0 if one.value is None else sign * one.value

    return sorted(sorted(results, key=lambda one: one.name), key=order)


def table(results: Sequence[Result], metric: str) -> tuple[list[str], list[list[str]]]:
    """Columns and rows: the trial, its settings, how it ended, and its best value."""
    keys = list(dict.fromkeys(key for one in results for key in one.settings))
    columns = ["trial", *keys, "state", f"best {metric}", "at step"]
    rows = [
        [
            one.name.rpartition("-")[2],
            *(shown(one.settings[key]) if key in one.settings else "–" for key in keys),
            one.state,
            "–" if one.value is None else f"{one.value:.4g}",
            "–" if one.step is None else str(one.step),
        ]
        for one in results
    ]
    return columns, rows


def shown(value: Any) -> str:
    """A setting's value in a table: numbers with four digits, tables as TOML."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else inline(value)


def document(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Everything, as plain values for ``--json``."""
    return [
        {
            "trial": one.name,
            "settings": dict(one.settings),
            "state": one.state,
            "message": one.message,
            "value": one.value,
            "step": one.step,
            "run": None if one.folder is None else str(one.folder),
        }
        for one in results
    ]
