"""Poisson's equation with an unknown coefficient, found from measurements."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.pde import Faces, Fixed, Inside, Problem, Term
from curvlab.pde.field import Field
from curvlab.pde.task import PdeTask
from curvlab.protocols.bounds import Count, NotNegative, Positive


@dataclass(frozen=True)
class InversePoisson(PdeTask):
    """Find u and κ with ``−κ Δu = f`` on the unit square, u = 0 on its faces, from measurements of u inside.

    ``u = sin(πx) sin(πy)``; the measurements have normal noise of standard deviation ``noise``.  ``val_l2``
    is the relative error of u at test points, ``val_kappa`` the coefficient that was found.
    """

    kappa: Positive = 1.7  #: the coefficient to be found
    start: Positive = 1.0  #: what it starts from
    measured: Count = 50  #: measurements, ≥ 1
    noise: NotNegative = 0.0  #: of a measurement

    def problem(self) -> Problem:
        generator = torch.Generator(device="cpu").manual_seed(self.data_seed + 1)
        x = torch.rand(self.measured, 2, dtype=torch.float64, generator=generator, device="cpu")
        off = torch.randn(self.measured, dtype=torch.float64, generator=generator, device="cpu")
        source = 2 * math.pi**2 * self.kappa

        def equation(u: Field, x: Tensor) -> Tensor:
            return -u.coefficient("kappa") * u.laplacian() - source * _solution(x)

        return Problem(
            coordinates={"x": (0.0, 1.0), "y": (0.0, 1.0)},
            terms=(
                Term(equation, Inside(self.interior)),
                Term(lambda u, x: u(), Faces(self.boundary), name="walls"),
                Term(lambda u, x: u() - u.data(), Fixed(x, _solution(x) + self.noise * off), name="measured"),
            ),
            unknowns={"kappa": self.start},
            reference=_solution,
        )


def _solution(x: Tensor) -> Tensor:
    return torch.sin(math.pi * x).prod(-1)
