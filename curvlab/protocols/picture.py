"""Pictures: what a task shows of its model, as numbers; ``curvlab plot`` draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Field:
    """Functions of two variables on one grid, by name: drawn side by side, on one scale of colors."""

    x: Float[Tensor, " m"]
    y: Float[Tensor, " n"]
    values: Mapping[str, Float[Tensor, "m n"]]

    def __post_init__(self) -> None:
        _check("x", self.x, (None,))
        _check("y", self.y, (None,))
        for name, values in _some(self.values).items():
            _check(name, values, (len(self.x), len(self.y)))


@dataclass(frozen=True, eq=False)
class Curve:
    """Functions of one variable at the same points, by name: drawn over one another."""

    x: Float[Tensor, " m"]
    values: Mapping[str, Float[Tensor, " m"]]

    def __post_init__(self) -> None:
        _check("x", self.x, (None,))
        for name, values in _some(self.values).items():
            _check(name, values, (len(self.x),))


@dataclass(frozen=True, eq=False)
class Images:
    """Rows of gray images of one size, by name; 0 is black and 1 is white."""

    values: Mapping[str, Float[Tensor, "k h w"]]

    def __post_init__(self) -> None:
        first = next(iter(_some(self.values).values()))
        _check(next(iter(self.values)), first, (None, None, None))
        for name, values in self.values.items():
            _check(name, values, tuple(first.shape))


@dataclass(frozen=True, eq=False)
class Picture:
    """One file of pictures: its title, which also names the file, its content, and the names of its axes.

    Tensors may be of any floating dtype, on any device.  Raises ``ValueError`` for shapes that disagree.
    """

    title: str
    content: Field | Curve | Images
    axes: tuple[str, str] = ("", "")  #: of x and y; images have none


def _some(values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    if not values:
        raise ValueError("a picture needs values: expected a mapping of names to tensors, got an empty one")
    return values


def _check(name: str, values: Tensor, expected: tuple[int | None, ...]) -> None:
    """``None`` stands for any size but 0."""
    shape = tuple(values.shape)
    fits = len(shape) == len(expected) and all(
        got >= 1 and wanted in (None, got) for got, wanted in zip(shape, expected, strict=True)
    )
    if not fits:
        words = ", ".join("any" if wanted is None else str(wanted) for wanted in expected)
        raise ValueError(f'values "{name}" of a picture: expected shape [{words}], got {list(shape)}')
