"""Pieces: some rows of a parameter, which are in a block while its other rows are in others."""

from __future__ import annotations

import re
from functools import lru_cache

from torch import Tensor

#: rows of a parameter: its name, first row, and row after the last
_PIECE = re.compile(r"(.*)\[(\d+):(\d+)\]")


def piece(parameter: str, start: int, stop: int) -> str:
    """The name of some rows of a parameter."""
    return f"{parameter}[{start}:{stop}]"


@lru_cache(maxsize=4096)
def whole(name: str) -> str:
    """The parameter that a name or a piece is of."""
    found = _PIECE.fullmatch(name)
    return name if found is None else found[1]


@lru_cache(maxsize=4096)
def rows_of_piece(name: str) -> slice | None:
    """The rows of a piece; ``None`` for a whole parameter."""
    found = _PIECE.fullmatch(name)
    return None if found is None else slice(int(found[2]), int(found[3]))


def cut(name: str, t: Tensor) -> Tensor:
    """Of a tensor like a whole parameter, the part that a name means: a view."""
    rows = rows_of_piece(name)
    return t if rows is None else t[rows]
