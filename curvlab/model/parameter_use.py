"""One use of a parameter by a torch function: which rows of it, on what, and with which output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Kind = Literal["linear", "transposed linear", "lookup", "scale", "shift", "unread"]


@dataclass(frozen=True)
class Part:
    """Rows ``start:stop`` of a parameter's first axis, as they are or transposed.

    ``layout`` is ``"other"`` for any other view: columns, one entry of the first axis, another shape.
    """

    parameter: Tensor
    start: int
    stop: int
    layout: Literal["rows", "transposed", "other"] = "rows"

    @property
    def rows(self) -> slice:
        """Which rows, as an index."""
        return slice(self.start, self.stop)

    def is_vector(self) -> bool:
        """Whether it is a bias or scale, or entries of one that lie side by side."""
        return self.layout == "rows" and self.parameter.dim() == 1

    def is_matrix(self) -> bool:
        """Whether it is whole rows of a matrix, transposed or not."""
        return self.layout != "other" and self.parameter.dim() == 2


@dataclass(frozen=True)
class ParameterUse:
    """One use of a part of a parameter by a torch function.

    =====================  =========================================  ===================================
    kind                   output                                     x
    =====================  =========================================  ===================================
    ``linear``             ``x Wᵀ + bias``, W the part                ``[.., i]``
    ``transposed linear``  ``x W + bias``                             ``[.., r]``, r the part's rows
    ``lookup``             rows ``x`` of the part                     integers ``[..]``
    ``scale``              ``x * s``, s broadcast over leading axes   ``[.., d]``
    ``shift``              ``… + s``, likewise                        not kept
    ``unread``             anything else; ``reason`` says what        not kept
    =====================  =========================================  ===================================

    No use says whether x has examples: a weight that is computed from other weights is captured like an
    activation unless x is a parameter or a view of one.
    """

    kind: Kind
    part: Part
    output: Tensor
    function: str
    x: Tensor | None = None  #: detached, and not a copy
    bias: Part | None = None  #: of a linear map, if it is one of the captured parameters
    padding: int | None = None  #: of a lookup: the index whose row gets no gradient
    reason: str = ""


def part_of(view: Tensor, parameter: Tensor) -> Part:
    """The part of a parameter that a view of it, or itself, covers; reads shapes and strides only."""
    rows = parameter.shape[0] if parameter.dim() else 1
    if view is parameter:
        return Part(parameter, 0, rows)
    if view.dim() == parameter.dim() > 0 and view.numel() and not view.is_conj():
        shape, strides = tuple(view.shape), view.stride()
        if (start := _first_row(view, parameter, shape, strides)) is not None:
            return Part(parameter, start, start + shape[0])
        if view.dim() == 2:
            start = _first_row(view, parameter, shape[::-1], strides[::-1])
            if start is not None:
                return Part(parameter, start, start + shape[1], "transposed")
    return Part(parameter, 0, rows, "other")


def _first_row(
    view: Tensor, parameter: Tensor, shape: tuple[int, ...], strides: tuple[int, ...]
) -> int | None:
    """Where rows of this shape and these strides start, or ``None`` if they are no rows of the parameter."""
    if shape[1:] != tuple(parameter.shape[1:]):
        return None
    if any(d > 1 and mine != own for d, mine, own in zip(shape, strides, parameter.stride(), strict=True)):
        return None
    offset, step = view.storage_offset() - parameter.storage_offset(), parameter.stride(0)
    start = offset // step if step else 0
    return start if start * step == offset and 0 <= start <= parameter.shape[0] - shape[0] else None
