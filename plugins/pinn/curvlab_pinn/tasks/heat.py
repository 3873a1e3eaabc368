"""The heat equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from curvlab.pde import Face, Faces, Inside, Problem, Term
from curvlab.pde.field import Field
from curvlab.pde.task import PdeTask
from curvlab.protocols.bounds import Bounds, Width
from curvlab_pinn.tasks.names import coordinates


@dataclass(frozen=True)
class Heat(PdeTask):
    """Solve ``∂u/∂t = Δu`` on the unit cube of time and space, u given at time 0 and on the faces of space.

    ``½ mean (∂u/∂t − Δu)² + ½ mean (u − g)²`` over boundary points, a share of them at time 0.  The solution
    is ``exp(−π² t/4) Σ_i sin(π x_i/2)``; ``val_l2`` is the relative error at test points.
    """

    dimension: Annotated[int, Bounds(least=2), Bounds(most=2**24)] = 2  #: coordinates, time among them, ≥ 2
    hidden: tuple[Width, ...] = (64, 64)  #: widths of the hidden layers

    def problem(self) -> Problem:
        space = coordinates(self.dimension - 1)
        first = max(1, round(self.boundary / (2 * len(space) + 1)))
        return Problem(
            coordinates={"t": (0.0, 1.0), **dict.fromkeys(space, (0.0, 1.0))},
            terms=(
                Term(lambda u, x: u.d("t") - u.laplacian(*space), Inside(self.interior), name="equation"),
                Term(_known, Face("t", 0.0, first), weight=first / self.boundary, name="start"),
                Term(
                    _known,
                    Faces(max(1, self.boundary - first), space),
                    weight=max(1, self.boundary - first) / self.boundary,
                    name="walls",
                ),
            ),
            reference=_solution,
        )


def _known(u: Field, x: Tensor) -> Tensor:
    return u() - _solution(x)


def _solution(x: Tensor) -> Tensor:
    t, space = x[:, 0], x[:, 1:]
    return torch.exp(-(math.pi**2) / 4 * t) * torch.sin(0.5 * math.pi * space).sum(-1)
