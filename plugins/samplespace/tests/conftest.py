"""Problems small enough for dense references."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from curvlab import pde


@pytest.fixture
def poisson() -> pde.Residuals:
    """A two-dimensional Poisson problem of two terms, weighted, with an unknown coefficient and data."""
    torch.manual_seed(0)
    measured = torch.rand(4, 2, dtype=torch.float64)

    def equation(u: pde.Field, x: Tensor) -> Tensor:
        return u.coefficient("kappa") * u.laplacian() + math.pi * torch.sin(x[:, 0]) + u() * u.d("x")

    problem = pde.Problem(
        coordinates={"x": (0.0, 1.0), "y": (0.0, 2.0)},
        terms=(
            pde.Term(equation, pde.Inside(9), weight=0.5),
            pde.Term(lambda u, x: torch.stack([u(), u.d("y")], 1), pde.Faces(5), weight=3.0, name="faces"),
            pde.Term(lambda u, x: u() - u.data(), pde.Fixed(measured, measured.sum(1)), name="data"),
        ),
        unknowns={"kappa": 1.3},
    )
    net = nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 1))
    return pde.Residuals(net.double(), problem).double()
