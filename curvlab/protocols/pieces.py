"""Pieces: part of a parameter, which is in a block while its other parts are in others.

A piece is some rows, or a range of each of several axes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from torch import Tensor

#: a parameter's name, and the range of each of its first axes
_PIECE = re.compile(r"(.*)\[((?:\d*:\d*)(?:,\d*:\d*)*)\]")

#: first index, and index after the last; ``None`` for all
Range = tuple[int, int] | None


def piece(parameter: str, start: int, stop: int) -> str:
    """The name of some rows of a parameter."""
    return f"{parameter}[{start}:{stop}]"


def piece_at(parameter: str, ranges: Sequence[Range]) -> str:
    """The name of the part of a parameter with these ranges of its first axes."""
    words = (":" if r is None else f"{r[0]}:{r[1]}" for r in ranges)
    return f"{parameter}[{','.join(words)}]"


@lru_cache(maxsize=4096)
def whole(name: str) -> str:
    """The parameter that a name or a piece belongs to."""
    found = _PIECE.fullmatch(name)
    return name if found is None else found[1]


@lru_cache(maxsize=4096)
def index_of_piece(name: str) -> tuple[slice, ...] | None:
    """The indices of a piece in its parameter; ``None`` for a whole parameter."""
    found = _PIECE.fullmatch(name)
    if found is None:
        return None
    bounds = (word.split(":") for word in found[2].split(","))
    return tuple(slice(int(a) if a else None, int(b) if b else None) for a, b in bounds)


def cut(name: str, t: Tensor) -> Tensor:
    """The part of a tensor like a whole parameter that a name means: a view."""
    index = index_of_piece(name)
    return t if index is None else t[index]
