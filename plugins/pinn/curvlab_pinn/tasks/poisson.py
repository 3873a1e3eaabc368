"""Poisson's equation on the unit cube."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from curvlab.pde import Faces, Inside, Problem, Term
from curvlab.pde.field import Field
from curvlab.pde.task import PdeTask
from curvlab.protocols.bounds import Width
from curvlab_pinn.tasks.names import coordinates

Solution = Literal["sine-product", "cosine-sum", "harmonic", "squared-norm"]


@dataclass(frozen=True)
class Poisson(PdeTask):
    """Solve ``−Δu = f`` on the unit cube with u given on its faces: ``½ mean (−Δu − f)² + ½ mean (u − g)²``.

    The network is an MLP.  ``solution`` is ``Π sin(π x_i)``, ``Σ cos(π x_i)``, the harmonic polynomial ``Σ
    x_{2i−1} x_{2i}``, or ``‖x‖²``; ``val_l2`` is the relative error at test points.  The defaults are the
    small network of Dangel, Müller and Zeinhofer 2024 (arXiv 2405.15603) on two dimensions, all points in
    every step.
    """

    dimension: Width = 2  #: coordinates, ≥ 1
    solution: Solution = "sine-product"

    def problem(self) -> Problem:
        u, f = SOLUTIONS[self.solution]

        def equation(field: Field, x: Tensor) -> Tensor:
            return -field.laplacian() - f(x)

        def boundary(field: Field, x: Tensor) -> Tensor:
            return field() - u(x)

        return Problem(
            coordinates=dict.fromkeys(coordinates(self.dimension), (0.0, 1.0)),
            terms=(Term(equation, Inside(self.interior)), Term(boundary, Faces(self.boundary))),
            reference=u,
        )


def _sine(x: Tensor) -> Tensor:
    return torch.sin(math.pi * x).prod(-1)


def _cosine(x: Tensor) -> Tensor:
    return torch.cos(math.pi * x).sum(-1)


def _harmonic(x: Tensor) -> Tensor:
    pairs = x[:, : 2 * (x.shape[1] // 2)]
    return (pairs[:, ::2] * pairs[:, 1::2]).sum(-1)


def _norm(x: Tensor) -> Tensor:
    return x.square().sum(-1)


#: the solution and the right-hand side, by name
SOLUTIONS: dict[Solution, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "sine-product": (_sine, lambda x: x.shape[1] * math.pi**2 * _sine(x)),
    "cosine-sum": (_cosine, lambda x: math.pi**2 * _cosine(x)),
    "harmonic": (_harmonic, lambda x: torch.zeros_like(x[:, 0])),
    "squared-norm": (_norm, lambda x: torch.full_like(x[:, 0], -2.0 * x.shape[1])),
}
