"""Burgers' equation, by the transformation of Cole and Hopf."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import UsageError
from curvlab.protocols.bounds import Bounds
from curvlab_pinn.references.grid import places, times
from curvlab_pinn.references.solution import Solution

#: the viscosity of the benchmark
NU = 0.01 / math.pi

#: below 0.001 a grid has more than 8192 points in x, and 257 times are too few for ten digits between them
RANGE = Bounds(least=1e-3, most=1.0)
Viscosity = Annotated[float, RANGE]

#: points whose integrals are computed at once: 4096 points by 121 nodes take 4 MB
CHUNK = 4096


def burgers_solution(nu: float = NU, m: int = 257, tell: Callable[[str], None] | None = None) -> Solution:
    """``u_t + u u_x = ν u_xx`` on [0, 1] × [-1, 1], ``u(0, x) = −sin(π x)``, u = 0 at x = ±1.

    Values are those of ``burgers_at``.  The grid has m ≥ 12 times and enough x for the front, of width 2ν.
    Accuracy, largest error: 1e-14 on the grid; 1e-12 between grid points at the default ν, 2e-9 at ν = 0.001.
    Cost, one thread: 0.4-1 s at the default ν, 3-6 s at ν = 0.001.  ``UsageError`` for ν outside [0.001, 1].
    """
    _require_viscosity(nu)
    # In complex x the front, tanh(x / 2ν), is analytic up to π ν i, so mode k is below exp(-π² ν k).
    n = 2 ** max(6, math.ceil(math.log2(60 / (math.pi**2 * nu))))
    t, x = times(m), places(n)
    half = x[: n // 2 + 1]
    u = torch.empty(m, n, dtype=torch.float64, device="cpu")
    for k in range(m):
        u[k, : n // 2 + 1] = burgers_at(torch.stack([t[k].expand_as(half), half], 1), nu)
        if tell is not None and k and k % 64 == 0:
            tell(f"burgers: {k} of {m - 1} times")
    u[:, n // 2 + 1 :] = -u[:, 1 : n // 2].flip(1)  # u is odd
    return Solution("burgers", {"nu": nu}, t, x, u)


def burgers_at(points: Float[Tensor, "k 2"], nu: float = NU) -> Float[Tensor, " k"]:
    """The solution of ``burgers_solution`` at points (t, x), without a grid.

        u = −∫ sin(π(x − η)) w dη / ∫ w dη,   log w = −cos(π(x − η)) / (2πν) − η² / (4νt)

    (Cole 1951, Quart. Appl. Math. 9, 225-236; Basdevant et al. 1986, Comput. Fluids 14, 23-41).  The weights
    w span hundreds of decades; each is divided by the largest, so none overflows and every sum is positive.
    The trapezoidal rule takes the place of Gauss-Hermite quadrature: it also converges exponentially, its
    nodes reach where the cosine outweighs the Gaussian, and they follow from ν.  10,000 points take 0.03 s.
    Accuracy 1e-14.  ``UsageError`` for ν outside [0.001, 1] and t outside [0, 1].
    """
    _require_viscosity(nu)
    points = points.detach().to(device="cpu", dtype=torch.float64)
    if not bool(((points[:, 0] >= 0) & (points[:, 0] <= 1)).all()):
        raise UsageError("the solution of burgers is known for 0 ≤ t ≤ 1, not at all points")
    z = _nodes(nu)
    u = torch.empty(len(points), dtype=torch.float64, device="cpu")
    for k in range(0, len(points), CHUNK):
        t, x = points[k : k + CHUNK].unbind(-1)
        angle = math.pi * (x[:, None] - torch.outer((4 * nu * t).sqrt(), z))
        w = torch.softmax(-angle.cos() / (2 * math.pi * nu) - z.square(), dim=1)
        u[k : k + CHUNK] = -(angle.sin() * w).sum(1)
    return u


def _require_viscosity(nu: float) -> None:
    if not RANGE.hold(nu):
        raise UsageError(f"nu = {nu!r} must {RANGE}")


def _nodes(nu: float) -> Float[Tensor, " q"]:
    """Equidistant nodes for ``z = η / √(4νt)``, t ≤ 1.

    Outside them ``exp(−z²)`` is below rounding, even times ``exp(1/(πν))``, the ratio of the largest to the
    smallest factor beside it.  Two nodes are 0.2 apart.  The narrowest peak of w is ``exp(−(1 + π) z²)``,
    whose standard deviation is 0.35; the rule has all digits at two thirds of that.  Nodes are closer where
    ν is so large that the cosine has several periods in the range of z.
    """
    distance = 0.2 / max(1.0, math.pi * math.sqrt(4 * nu))
    count = math.ceil(math.sqrt(1 / (math.pi * nu) + 40) / distance)
    return torch.arange(-count, count + 1, dtype=torch.float64, device="cpu") * distance
