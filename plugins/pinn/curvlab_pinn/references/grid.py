"""The grid of a periodic solution: times, points and modes."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor


def places(n: int) -> Float[Tensor, " n"]:
    """Equidistant points from -1 on; 1 is left out, because it is -1."""
    return torch.arange(n, dtype=torch.float64, device="cpu") * (2 / n) - 1


def times(m: int) -> Float[Tensor, " m"]:
    """Equidistant times from 0 to 1."""
    return torch.arange(m, dtype=torch.float64, device="cpu") / (m - 1)


def wavenumbers(n: int) -> Float[Tensor, " modes"]:
    """π m for the modes m of ``rfft``."""
    return math.pi * torch.arange(n // 2 + 1, dtype=torch.float64, device="cpu")
