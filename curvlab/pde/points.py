"""Point sets: where the terms of a problem are imposed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Bounds, Count, Positive, check_bounds
from curvlab.registry.suggest import advice

#: a box: each coordinate with its range
Box = Mapping[str, tuple[float, float]]

Design = Literal["uniform", "latin-hypercube", "grid"]

#: ``|residual|`` at points
Sizes = Callable[[Tensor], Tensor]


class Points(ABC):
    """A rule that places points in a box; points are float64 on the CPU, the same in every precision."""

    #: whether points move to where the residual is large
    adaptive: bool = False
    #: whether drawing again gives other points
    moving: bool = True

    @abstractmethod
    def draw(self, box: Box, generator: torch.Generator, sizes: Sizes | None = None) -> Float[Tensor, "n d"]:
        """The points; ``sizes`` are the residual's, if it is known."""

    @property
    def data(self) -> Float[Tensor, "n k"] | None:
        """Values that are known at the points, one row each."""
        return None


@dataclass(frozen=True)
class Inside(Points):
    """Points inside the box: independent and uniform, a Latin hypercube, or the midpoints of a regular grid.

    A grid has the largest equal number of points along each coordinate whose product is at most ``count``.
    """

    count: Count
    design: Design = "uniform"

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """Whether draws differ: not those of a grid."""
        return self.design != "grid"

    def draw(self, box: Box, generator: torch.Generator, sizes: Sizes | None = None) -> Tensor:
        return _scaled(_unit(self.count, len(box), self.design, generator), box)


@dataclass(frozen=True)
class Face(Points):
    """Points where one coordinate has one value: an initial time, a wall."""

    coordinate: str
    value: float
    count: Count
    design: Design = "uniform"

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def moving(self) -> bool:  # type: ignore[override]
        """Whether draws differ: not those of a grid."""
        return self.design != "grid"

    def draw(self, box: Box, generator: torch.Generator, sizes: Sizes | None = None) -> Tensor:
        axis = _axis(self.coordinate, box)
        others = {name: ends for name, ends in box.items() if name != self.coordinate}
        rest = _scaled(_unit(self.count, len(others), self.design, generator), others)
        here = torch.full((len(rest), 1), self.value, dtype=torch.float64, device="cpu")
        return torch.cat([rest[:, :axis], here, rest[:, axis:]], 1)


@dataclass(frozen=True)
class Faces(Points):
    """Uniform points on both faces of some coordinates, or of all; as many on every face."""

    count: Count
    coordinates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_bounds(self)

    def draw(self, box: Box, generator: torch.Generator, sizes: Sizes | None = None) -> Tensor:
        x = _scaled(_unit(self.count, len(box), "uniform", generator), box)
        names, ends = self.coordinates or tuple(box), list(box.values())
        faces = [(axis, side) for axis in (_axis(name, box) for name in names) for side in ends[axis]]
        for k in range(self.count):
            axis, side = faces[k % len(faces)]
            x[k, axis] = side
        return x


@dataclass(frozen=True, eq=False)
class Fixed(Points):
    """Points that are given, ``[n, d]``, with data ``[n]`` or ``[n, k]`` if something was measured there."""

    points: Tensor
    values: Tensor | None = None

    moving = False

    def __post_init__(self) -> None:
        if self.points.dim() != 2:
            raise ConfigError(
                Fault(f"points have the shape {list(self.points.shape)}; expected [n, d]", path="points")
            )
        if not len(self.points):
            raise ConfigError(Fault("there are no points", path="points", hint="give at least one, [n, d]"))
        shape = None if self.values is None else list(self.values.shape)
        if shape is not None and (len(shape) not in (1, 2) or shape[0] != len(self.points)):
            raise ConfigError(
                Fault(
                    f"values have the shape {shape} for {len(self.points)} points; expected [n] or [n, k]",
                    path="values",
                )
            )

    def draw(self, box: Box, generator: torch.Generator, sizes: Sizes | None = None) -> Tensor:
        if self.points.shape[1] != len(box):
            raise ConfigError(
                Fault(
                    f"points have {self.points.shape[1]} coordinates; the problem has {len(box)}:"
                    f" {', '.join(box)}",
                    path="points",
                )
            )
        return self.points.detach().to(device="cpu", dtype=torch.float64)

    @property
    def data(self) -> Tensor | None:
        if self.values is None:
            return None
        known = self.values.detach().to(device="cpu", dtype=torch.float64)
        return known.unsqueeze(1) if known.dim() == 1 else known


@dataclass(frozen=True)
class Adaptive(Points):
    """Points inside that are drawn again where the residual is large.

    Out of ``candidates`` uniform points for each point, one is drawn with a probability proportional to
    ``|r|^power / mean |r|^power + floor``; the first points are uniform.  Residual-based adaptive
    distribution, Wu, Zhu, Tan, Kartha and Lu 2023 (arXiv 2207.10289), whose defaults these are.
    """

    count: Count
    power: Positive = 1.0
    floor: Annotated[float, Bounds(least=0)] = 1.0
    candidates: Count = 10

    adaptive = True

    def __post_init__(self) -> None:
        check_bounds(self)

    def draw(self, box: Box, generator: torch.Generator, sizes: Sizes | None = None) -> Tensor:
        if sizes is None:
            return _scaled(_unit(self.count, len(box), "uniform", generator), box)
        pool = _scaled(_unit(self.count * self.candidates, len(box), "uniform", generator), box)
        size = sizes(pool).detach().to(device="cpu", dtype=torch.float64) ** self.power
        size = size.nan_to_num(nan=0.0, posinf=0.0)  # of a network that diverged
        tiny = torch.finfo(size.dtype).tiny
        weight = (size / size.mean().clamp(min=tiny) + self.floor).clamp(min=tiny)
        chosen: Tensor = pool[torch.multinomial(weight, self.count, generator=generator)]
        return chosen


def _unit(n: int, d: int, design: Design, generator: torch.Generator) -> Float[Tensor, "n d"]:
    """Points of the unit cube."""
    if design == "grid":
        side = max(1, math.floor(n ** (1 / max(d, 1)) + 1e-9))
        ticks = (torch.arange(side, dtype=torch.float64, device="cpu") + 0.5) / side
        return torch.cartesian_prod(*[ticks] * d).view(-1, d) if d else ticks.new_zeros(n, 0)
    x = torch.rand(n, d, dtype=torch.float64, generator=generator, device="cpu")
    if design == "latin-hypercube":
        order = torch.stack([torch.randperm(n, generator=generator, device="cpu") for _ in range(d)], 1)
        x = (order + x) / n
    return x


def _scaled(unit: Tensor, box: Box) -> Tensor:
    if not box:
        return unit
    low, high = torch.tensor(list(box.values()), dtype=torch.float64, device="cpu").mT
    scaled: Tensor = low + unit * (high - low)
    return scaled


def _axis(name: str, box: Box) -> int:
    if name not in box:
        raise ConfigError(
            Fault(
                f'"{name}" is not a coordinate of the problem, which has {", ".join(box)}',
                hint=advice(name, box, "Coordinates"),
            )
        )
    return list(box).index(name)
