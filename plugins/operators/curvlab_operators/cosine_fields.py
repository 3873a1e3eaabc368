"""Gaussian random fields on the unit square, as cosine series: one function on grids of any size."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.tasks.draws import Draws


def coefficients(draw: Draws, n: int, modes: int, *, tau: float, alpha: float) -> Float[Tensor, "n k k"]:
    """Coefficients of n fields with covariance ``(−Δ + τ² I)^−α`` and Neumann conditions, on the square.

    In the basis ``c_k(x) c_l(y)``, c_0 = 1 and ``c_k = √2 cos πkx``, they are independent, with standard
    deviation ``(π²(k² + l²) + τ²)^(−α/2)``.  The series ends at k, l < ``modes``, whatever the grid.
    """
    k = torch.arange(modes, dtype=torch.float64, device="cpu")
    spectrum = math.pi**2 * (k[:, None].square() + k.square()) + tau**2
    return draw(n, modes, modes) * spectrum ** (-alpha / 2)


def at_centers(found: Float[Tensor, "n k k"], grid: int) -> Float[Tensor, "n g g"]:
    """The fields at the centers of ``grid × grid`` equal cells."""
    basis = _cosines(found.shape[-1], grid)
    return basis.mT @ found @ basis


def _cosines(modes: int, grid: int) -> Float[Tensor, "k g"]:
    x = (torch.arange(grid, dtype=torch.float64, device="cpu") + 0.5) / grid
    k = torch.arange(modes, dtype=torch.float64, device="cpu")
    basis = math.sqrt(2.0) * torch.cos(math.pi * k[:, None] * x)
    basis[0] = 1.0
    return basis
