"""Which columns of a block are which parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Columns:
    """Columns ``start:stop`` of a block, read as a matrix ``[o, i]``: the entries of one parameter.

    ``matrix``: whether the parameter has at least two dimensions, as a weight has and a bias does not.
    """

    parameter: str
    start: int
    stop: int
    matrix: bool


def single(parameter: str, shape: Sequence[int], dimensions: int | None = None) -> tuple[Columns, ...]:
    """The columns of a block that is one parameter, of as many dimensions as its block unless given."""
    width = math.prod(shape[1:])
    return (Columns(parameter, 0, width, (len(shape) if dimensions is None else dimensions) > 1),)
