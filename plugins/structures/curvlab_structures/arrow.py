"""Arrows: triangular but for a dense corner, with k dense rows or columns and a diagonal on the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Count, check_bounds
from curvlab_structures.bordered import Bordered, Head
from curvlab_structures.bordered_structure import BorderedFamily, BorderedMatrix

Corner = Literal["top", "bottom"]


@dataclass(frozen=True)
class ArrowMatrix(BorderedMatrix):
    """``[[A, B], [0, Diag D]]`` with the corner's indices first or last, or the transpose of it."""

    corner: Float[Tensor, "*b k k"]  #: A

    def form(self) -> Bordered:
        return Bordered(self.corner, self.border, self.diagonal, self.family.head(self.d))

    def squares(self) -> tuple[Float[Tensor, "*b _ _"], ...]:
        return (self.corner,)


@dataclass(frozen=True)
class Arrow(BorderedFamily):
    """What both triangles have in common; see them."""

    rows: Count = 1
    corner: Corner = "top"

    upper: ClassVar[bool]

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.corner not in get_args(Corner):
            raise ConfigError(Fault(f'corner = {self.corner!r} must be "top" or "bottom"', path="corner"))

    @property
    def columns(self) -> bool:
        return self.upper == (self.corner == "bottom")

    def head(self, d: int) -> Head:
        k = min(self.rows, d)
        return Head(k, 0) if self.corner == "top" else Head(0, k)

    def fold(self, M: Bordered, weight: float = 1.0) -> ArrowMatrix:
        return ArrowMatrix(M.border, M.diagonal, self, M.corner)


@dataclass(frozen=True)
class UpperArrow(Arrow):
    """Π(S): S's corner and the diagonal of its rest, twice the border between them; upper triangular.

    With k = ``rows`` (d where that is less): ``[[A, B], [0, Diag D]]``, k dense rows, if the ``corner`` A
    is at the top, ``[[Diag D, B], [0, A]]``, k dense columns, if it is at the bottom; A is full.
    ``k² + k·(d − k) + (d − k)`` scalars; a product with a vector costs about (2·k + 1)·d flops, one with
    K Kᵀ (4·k + 1)·d, a congruence of n rows 4·n·k·d.  Source: the rank-k triangular matrices of arXiv
    2312.05705.
    """

    upper = True


@dataclass(frozen=True)
class LowerArrow(Arrow):
    """Π(S): S's corner and the diagonal of its rest, twice the border between them; lower triangular.

    The transposes of ``upper-arrow``, with its storage and costs: ``[[A, 0], [B, Diag D]]``, k dense
    columns, if the ``corner`` is at the top, ``[[Diag D, 0], [B, A]]``, k dense rows, if it is at the bottom.
    """

    upper = False
