"""What a residual function sees of the solution: its values and derivatives at the points of a term."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.pde.partials import HIGHEST, Derivative, Laplacian
from curvlab.registry.suggest import advice


@dataclass(frozen=True)
class Field(ABC):
    """The solution u at n points.

    ``u()`` is its value, ``u.d("x", "x")`` a partial derivative of order one to four, ``u.gradient()`` and
    ``u.laplacian()`` combinations of them.  Each is ``[n]``; of a solution with q outputs ``[n, q]``, and
    ``u[k]`` is one of them.  Coordinates are given by name or number.  ``u.data()`` are the values known at
    the points, ``[n]`` or ``[n, k]``; ``u.coefficient("nu")`` is an unknown coefficient that is trained.
    """

    names: Sequence[str]
    outputs: int
    values: Tensor | None = None
    unknowns: Mapping[str, Tensor] = field(default_factory=dict)
    component: int | None = None

    def __call__(self) -> Tensor:
        """The value."""
        return self._of(())

    def d(self, *coordinates: str | int) -> Tensor:
        """The partial derivative in these coordinates, in any order; each may stand several times."""
        if not 1 <= len(coordinates) <= HIGHEST:
            raise ConfigError(
                Fault(
                    f"u.d was called with {len(coordinates)} coordinates; expected 1 to {HIGHEST}",
                    hint=f"derivatives up to order {HIGHEST} are supported; u() is the value",
                )
            )
        return self._of(tuple(sorted(self._number(c) for c in coordinates)))

    def gradient(self, *coordinates: str | int) -> Tensor:
        """First derivatives in these coordinates, or in all of them, on a last axis."""
        chosen = coordinates or tuple(range(len(self.names)))
        return torch.stack([self.d(c) for c in chosen], -1)

    def laplacian(self, *coordinates: str | int) -> Tensor:
        """The sum of second derivatives in these coordinates, or in all of them; one channel of a jet."""
        chosen = tuple(sorted(self._number(c) for c in coordinates)) or tuple(range(len(self.names)))
        if len(set(chosen)) < len(chosen):
            raise ConfigError(
                Fault(f"u.laplacian was called with coordinates {coordinates}; expected each at most once")
            )
        return self._of(Laplacian(chosen))

    def __getitem__(self, component: int) -> Field:
        if not 0 <= component < self.outputs:
            raise ConfigError(
                Fault(
                    f"the residual reads output {component} of the network, which has {self.outputs}",
                    hint="set outputs of the problem to the number of functions that are sought",
                )
            )
        return replace(self, component=component)

    def data(self) -> Tensor:
        """The values that are known at the points of this term, ``[n]`` or ``[n, k]``."""
        if self.values is None:
            raise ConfigError(
                Fault(
                    "the residual reads data, and the points of its term have none",
                    hint="use points = Fixed(points, values) in this term",
                )
            )
        return self.values

    def coefficient(self, name: str) -> Tensor:
        """An unknown coefficient: a scalar that is trained with the network."""
        if name not in self.unknowns:
            raise ConfigError(
                Fault(
                    f'the residual reads the coefficient "{name}", which the problem does not have',
                    hint=f'add it to the problem: unknowns = {{"{name}": 1.0}}',
                )
            )
        return self.unknowns[name]

    @abstractmethod
    def _of(self, derivative: Derivative) -> Tensor:
        """One derivative."""

    def _one(self, found: Float[Tensor, "n q"]) -> Tensor:
        """``[n]`` of one output, ``[n, q]`` of several."""
        if self.component is not None:
            return found[:, self.component]
        return found[:, 0] if self.outputs == 1 else found

    def _number(self, coordinate: str | int) -> int:
        if isinstance(coordinate, int) and 0 <= coordinate < len(self.names):
            return coordinate
        if coordinate in self.names:
            return list(self.names).index(str(coordinate))
        raise ConfigError(
            Fault(
                f"{coordinate!r} is not a coordinate of the problem, which has {', '.join(self.names)}",
                hint=advice(str(coordinate), self.names, "Coordinates"),
            )
        )


@dataclass(frozen=True)
class Evaluated(Field):
    """A solution whose derivatives were computed; ``Missing`` is raised for one that was not."""

    found: Mapping[Derivative, Float[Tensor, "n q"]] = field(default_factory=dict)

    def _of(self, derivative: Derivative) -> Tensor:
        if derivative not in self.found:
            raise Missing(derivative)
        return self._one(self.found[derivative])


class Missing(Exception):
    """A derivative that a residual asks for and that was not computed."""

    def __init__(self, derivative: Derivative) -> None:
        super().__init__(str(derivative))
        self.derivative = derivative


@dataclass(frozen=True)
class Recorder(Field):
    """A stand-in for u that writes down which derivatives a residual asks for; its numbers mean nothing."""

    x: Float[Tensor, "n d"] = field(default_factory=lambda: torch.zeros(0, 1, device="cpu"))
    asked: list[Derivative] = field(default_factory=list)

    def _of(self, derivative: Derivative) -> Tensor:
        if derivative not in self.asked:
            self.asked.append(derivative)
        first = torch.sin(self.x.sum(1, keepdim=True)) + 2.0
        return self._one(first.expand(-1, self.outputs))
