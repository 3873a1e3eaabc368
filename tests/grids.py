"""A few points of a grid in every run of the tests; the others by ``pytest -m grid``."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable
from typing import Any

import pytest


def thinned(*axes: Iterable[Any], few: Collection[tuple[Any, ...]]) -> list[Any]:
    """Every combination of the axes as a case; those that are not among ``few`` are of the grid.

    Raises ``ValueError`` for a point that no combination is: a typo would thin the grid in silence.
    """
    points = list(itertools.product(*axes))
    if unknown := set(few).difference(points):
        raise ValueError(f"no points of the grid: {sorted(map(str, unknown))}")
    return [
        pytest.param(*point, marks=[] if point in few else pytest.mark.grid, id="-".join(map(str, point)))
        for point in points
    ]


def rotated(first: Iterable[Any], second: Iterable[Any]) -> list[Any]:
    """Every pair as a case; each value of the first axis has one that is not of the grid, in turn."""
    values, others = list(first), list(second)
    return thinned(values, others, few={(value, others[k % len(others)]) for k, value in enumerate(values)})
