"""Curves in characters, for a terminal: a letter for each configuration."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from statistics import median

from curvlab.comparing.comparison import Row, TaskComparison
from curvlab.comparing.record import Curve, Over
from curvlab.comparing.words import short

#: letters of configurations; as many are drawn
LETTERS = "abcdefghijklmnopqrstuvwxyz"
#: lines of a drawing, and the most columns of its inside
HEIGHT, WIDEST = 14, 90
#: values within this factor of one another look the same on a linear axis
_NARROW = 2.0

_WORDS: dict[Over, str] = {
    "steps": "steps",
    "seconds": "seconds of training",
    "examples": "training examples",
}


def letters(count: int) -> list[str]:
    """A letter for each of the first rows, and nothing for those that are not drawn."""
    return [LETTERS[k] if k < len(LETTERS) else "" for k in range(count)]


def drawing(compared: TaskComparison, axis: Over, width: int) -> list[str]:
    """Lines of at most ``width`` characters; none if no run has the metric.

    Each letter is the median over a configuration's runs.  Where curves meet, the row that stands first in
    the table is shown.  The vertical axis is logarithmic for losses that differ by more than a factor of two.
    """
    drawn = list(zip(letters(len(compared.rows)), compared.rows, strict=True))[: len(LETTERS)]
    curves = {letter: _curves(row, compared.metric) for letter, row in drawn}
    ends = [x for found in curves.values() for curve in found for x in curve.over(axis) if math.isfinite(x)]
    margin = 10
    columns = min(width - margin - 1, WIDEST)
    if not ends or columns < 10:
        return []
    right = max(ends) or 1.0
    rows = {letter: _sampled(found, axis, right, columns) for letter, found in curves.items()}
    values = [y for row in rows.values() for y in row if y is not None]
    if not values:
        return []
    low, high = min(values), max(values)
    logarithmic = not compared.more_is_better and low > 0 and high > _NARROW * low
    cells = [[" "] * columns for _ in range(HEIGHT)]
    for letter in reversed(rows):
        for column, y in enumerate(rows[letter]):
            if y is not None:
                cells[_line(y, low, high, logarithmic)][column] = letter
    return _framed(cells, low, high, right, f"{compared.metric} over {_WORDS[axis]}", logarithmic)


def _curves(row: Row, metric: str) -> list[Curve]:
    return [curve for run in row.runs if (curve := run.curve(metric)) is not None]


def _sampled(curves: Sequence[Curve], axis: Over, right: float, columns: int) -> list[float | None]:
    """The median of the curves at the middle of a column; ``None`` where half of them or fewer are."""
    at = [(column + 0.5) / columns * right for column in range(columns)]
    lines = [_interpolated(curve.over(axis), curve.values, at, right / columns) for curve in curves]
    found: list[float | None] = []
    for column in range(columns):
        there = [line[column] for line in lines]
        known = [y for y in there if y is not None]
        found.append(median(known) if 2 * len(known) > len(there) else None)
    return found


def _interpolated(
    x: Sequence[float], y: Sequence[float], at: Sequence[float], reach: float
) -> list[float | None]:
    """Along straight lines between finite points; a point alone is seen within half of ``reach``."""
    points = sorted((a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b))
    places = [a for a, _ in points]
    found: list[float | None] = []
    for place in at:
        k = bisect_right(places, place)
        near = [points[j] for j in (k - 1, k) if 0 <= j < len(points)]
        if len(near) == 2:
            (a, b), (c, d) = near
            found.append(b + (d - b) * (place - a) / (c - a))
        elif near and abs(near[0][0] - place) <= reach / 2 + 1e-12 * abs(place):
            found.append(near[0][1])
        else:
            found.append(None)
    return found


def _line(y: float, low: float, high: float, logarithmic: bool) -> int:
    if logarithmic:
        y, low, high = math.log(y), math.log(low), math.log(high)
    part = (y - low) / (high - low) if high > low else 0.5
    return round((1 - part) * (HEIGHT - 1))


def _framed(
    cells: Sequence[Sequence[str]], low: float, high: float, right: float, title: str, logarithmic: bool
) -> list[str]:
    half = (HEIGHT - 1) // 2
    part = 1 - half / (HEIGHT - 1)
    middle = low * (high / low) ** part if logarithmic else low + (high - low) * part
    marks = {0: high, half: middle, HEIGHT - 1: low}
    lines = [f"{'':10}{title}{', logarithmic' if logarithmic else ''}"]
    for k, row in enumerate(cells):
        mark = f"{marks[k]:.3g}" if k in marks else ""
        lines.append(f"{mark:>8} │{''.join(row)}".rstrip())
    end = short(right)
    lines.append(f"{'':9}└{'─' * len(cells[0])}")
    lines.append(f"{'':10}0{end:>{len(cells[0]) - 1}}")
    return lines
