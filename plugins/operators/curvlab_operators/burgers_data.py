"""The data of the task ``burgers-flow``: random waves, and what becomes of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from jaxtyping import Complex
from torch import Tensor

from curvlab.protocols.bounds import Bounds, Count, Positive
from curvlab.tasks.draws import Normal
from curvlab_operators.burgers import at_points, solve
from curvlab_operators.operator_data import OperatorData
from curvlab_operators.pairs import Pairs

#: points and steps per unit of time of the solver, whatever the task's grid is
POINTS, STEPS = 256, 600

#: waves that a solution starts from
WAVES = 32

Viscosity = Annotated[float, Bounds(least=0.01, most=1.0)]


@dataclass(frozen=True, kw_only=True)
class BurgersData(OperatorData):
    """Draw periodic waves u and solve Burgers' equation, u_t + u u_x = nu u_xx with period 1, up to a time.

    The waves are Gaussian, with mean 0 and covariance 625 (-Laplacian + 25 I)^-2. The solver has 256 points
    and 600 steps per unit of time; 250 examples take some seconds.
    """

    equation: ClassVar[str] = "burgers-flow"

    grid: Count = 64  #: points of a period
    nu: Viscosity = 0.02  #: viscosity, in [0.01, 1]
    time: Positive = 0.5  #: of the outputs

    def made(self) -> Pairs:
        start = waves(Normal(self.data_seed), self.size + self.validation_size)
        end = solve(start, self.nu, self.time, math.ceil(STEPS * self.time))
        u, v = (at_points(t, self.grid).unsqueeze(1) for t in (start, end))
        return Pairs(u, v, self.validation_size)


def waves(draw: Normal, n: int) -> Complex[Tensor, "n k"]:
    """Fourier coefficients of n waves of mean 0."""
    k = 2 * math.pi * torch.arange(1, WAVES + 1, dtype=torch.float64, device="cpu")
    parts = draw(n, WAVES, 2) * (25.0 / (k.square() + 25.0) * 0.5**0.5)[:, None]
    found = torch.zeros(n, POINTS // 2 + 1, dtype=torch.complex128, device="cpu")
    found[:, 1 : WAVES + 1] = torch.view_as_complex(parts)
    return found
