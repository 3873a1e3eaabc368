"""Helmholtz' equation on a square."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.pde import Faces, Inside, Problem, Term
from curvlab.pde.task import PdeTask
from curvlab.protocols.bounds import Count, Positive, Width


@dataclass(frozen=True)
class Helmholtz(PdeTask):
    """Solve ``Δu + k² u = q`` on [−1, 1]² with u = 0 on its faces, for ``u = sin(π a x) sin(π b y)``.

    The benchmark of Wang, Teng and Perdikaris 2021 (arXiv 2001.04536, §4.1) with a = 1, b = 4, k = 1.
    """

    hidden: tuple[Width, ...] = (32, 32)  #: widths of the hidden layers
    interior: Count = 1600  #: points inside, ≥ 1
    boundary: Count = 240  #: points on the faces, ≥ 1
    a: Count = 1  #: half waves along x, over two
    b: Count = 4  #: half waves along y, over two
    k: Positive = 1.0  #: the wave number

    def problem(self) -> Problem:
        a, b, k = math.pi * self.a, math.pi * self.b, self.k

        def solution(x: Tensor) -> Tensor:
            return torch.sin(a * x[:, 0]) * torch.sin(b * x[:, 1])

        def source(x: Tensor) -> Tensor:
            return (k * k - a * a - b * b) * solution(x)

        return Problem(
            coordinates={"x": (-1.0, 1.0), "y": (-1.0, 1.0)},
            terms=(
                Term(
                    lambda u, x: u.laplacian() + k * k * u() - source(x),
                    Inside(self.interior),
                    name="equation",
                ),
                Term(lambda u, x: u(), Faces(self.boundary), name="walls"),
            ),
            reference=solution,
        )
