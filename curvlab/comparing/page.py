"""A comparison as one HTML page with interactive curves; it opens from disk and makes no request."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from statistics import median
from typing import Any

from curvlab.comparing.comparison import Comparison, Row, TaskComparison
from curvlab.comparing.record import POSITION, Over, Record, is_number, number
from curvlab.comparing.words import heading, table
from curvlab.pages.page import as_page, asset

#: bytes that a page may have
LIMIT = 3_000_000

#: digits of a value and of a position: more than a chart can show
_DIGITS = 5


@dataclass(frozen=True)
class Detail:
    """How much of the curves a page holds: points of a curve, metrics of steps, and rows of a task."""

    points: int
    every_metric: bool
    rows: int


#: no limit on the rows
_ALL = 10**9
#: from everything to what fits for very many runs
DETAILS = (
    *(Detail(points, True, _ALL) for points in (1000, 500, 300)),
    *(Detail(points, False, _ALL) for points in (300, 200, 140, 100, 70, 50, 35, 25, 16)),
    *(Detail(16, False, rows) for rows in (1000, 300, 100, 30)),
    *(Detail(4, False, rows) for rows in (30, 10, 3, 1)),
)
#: bytes of a number, of a run and of a row on a page, about
_NUMBER, _RUN, _ROW = 7, 250, 300


@dataclass(frozen=True)
class Section:
    """What another page shows above the curves: markup, a script that runs last, and ``data.race`` for it."""

    markup: str
    script: str
    data: Mapping[str, Any]


def page(
    compared: Comparison,
    axis: Over = "steps",
    title: str = "Comparison of runs",
    section: Section | None = None,
) -> str:
    """The page's text, of at most ``LIMIT`` bytes: curves of more points are thinned, as the page says."""
    main, script = asset("curvlab.comparing", "page.html"), asset("curvlab.comparing", "page.js")
    style = asset("curvlab.comparing", "page.css")
    if section is not None:
        main, script = f"{section.markup}{main}", f"{script}\n{section.script}"
    text = ""
    for detail in DETAILS:
        if detail is not DETAILS[-1] and _size(compared, detail) > LIMIT:
            continue
        data = _data(compared, axis, detail) | ({} if section is None else {"race": section.data})
        text = as_page(main, title, style=style, script=script, data=data)
        if len(text.encode()) <= LIMIT:
            break
    return text


def _size(compared: Comparison, detail: Detail) -> int:
    """About how many bytes the data take; cheaper than to write them."""
    size = 0
    for row in (row for task in compared.tasks for row in task.rows[: detail.rows]):
        size += _ROW
        for run in row.runs:
            metrics = len(run.metrics) if detail.every_metric else 1
            evaluated = len(run.evaluations[-1]) if run.evaluations else 0
            size += _RUN + _NUMBER * min(len(run.steps), detail.points) * (3 + metrics)
            size += _NUMBER * min(len(run.evaluations), detail.points) * evaluated
    return size


def _data(compared: Comparison, axis: Over, detail: Detail) -> dict[str, Any]:
    left_out = sum(max(len(task.rows) - detail.rows, 0) for task in compared.tasks)
    thinned = any(
        len(lines) > detail.points
        for task in compared.tasks
        for row in task.rows
        for run in row.runs
        for lines in (run.steps, run.evaluations)
    )
    return {
        "axis": axis,
        "points": detail.points if thinned else None,
        "left_out": left_out,
        "losses_alone": not detail.every_metric,
        "tasks": [_task(task, detail) for task in compared.tasks],
        "troubled": [[str(run.path), run.state, run.trouble] for run in compared.troubled],
        "notes": list(compared.notes),
    }


def _task(task: TaskComparison, detail: Detail) -> dict[str, Any]:
    kept = task.rows[: detail.rows]
    columns, cells = table(task, [""] * len(task.rows))
    return {
        "task": task.task,
        "heading": heading(task),
        "metric": task.metric,
        "more": task.more_is_better,
        "target": None if task.target is None else task.target.value,
        "columns": columns[1:],
        "rows": [_row(row, line[1:], detail) for row, line in zip(kept, cells, strict=False)],
    }


def _row(row: Row, cells: Sequence[str], detail: Detail) -> dict[str, Any]:
    return {
        "label": row.label,
        "cells": list(cells),
        "differs": {key: "–" if value is None else str(value) for key, value in row.differs.items()},
        "runs": [_run(run, row, detail) for run in row.runs],
    }


def _run(run: Record, row: Row, detail: Detail) -> dict[str, Any]:
    about = run.outline
    steps = ["loss"] if not detail.every_metric else _varying(run.steps)
    return {
        "name": about.name,
        "seed": about.seed,
        "state": about.state,
        "s": _lines(run, run.steps, steps, detail.points),
        "e": _lines(run, run.evaluations, _names(run.evaluations), detail.points),
    }


def _names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = dict.fromkeys(chain.from_iterable(lines))
    return [key for key in keys if key not in POSITION and any(is_number(line.get(key)) for line in lines)]


def _varying(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """The loss, and what is not the same at all steps."""
    return [name for name in _names(lines) if name == "loss" or len({line.get(name) for line in lines}) > 1]


def _lines(
    run: Record, lines: Sequence[Mapping[str, Any]], names: Sequence[str], points: int
) -> dict[str, Any]:
    """Positions and values of lines; of more than ``points`` lines the medians of blocks of neighbors."""
    size = max(math.ceil(len(lines) / points), 1)
    blocks = [lines[k : k + size] for k in range(0, len(lines), size)]
    return {
        "x": {
            "steps": [_middle([number(line["step"]) for line in block], _DIGITS + 3) for block in blocks],
            "examples": [_middle([run.examples_of(line) for line in block], _DIGITS + 3) for block in blocks],
            "seconds": [_middle([number(line.get("seconds")) for line in block]) for block in blocks],
        },
        "y": {
            name: [_middle([number(line.get(name)) for line in block]) for block in blocks] for name in names
        },
    }


def _middle(values: Sequence[float], digits: int = _DIGITS) -> float | None:
    """The median of finite values, rounded."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    value = float(f"{finite[0] if len(finite) == 1 else median(finite):.{digits}g}")
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
