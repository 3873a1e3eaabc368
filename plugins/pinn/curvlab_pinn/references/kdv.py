"""The equation of Korteweg and de Vries, by a Fourier series and exponential steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from curvlab_pinn.references.etdrk4 import ETDRK4
from curvlab_pinn.references.grid import places, times, wavenumbers
from curvlab_pinn.references.solution import Solution

#: δ of Zabusky and Kruskal
DISPERSION = 0.022
SETTINGS = {"dispersion": DISPERSION}


def kdv_solution(
    n: int = 384, m: int = 513, every: int = 40, tell: Callable[[str], None] | None = None
) -> Solution:
    """``u_t + u u_x + 0.022² u_xxx = 0`` on [0, 1] × [-1, 1], periodic in x, ``u(0, x) = cos(π x)``.

    A wave steepens and breaks into solitons (Zabusky and Kruskal 1965, Phys. Rev. Lett. 15, 240-243).
    The grid has n points in x, even, and m ≥ 12 times, ``every`` steps of ``ETDRK4`` apart.
    Accuracy, largest error: 1e-10, on the grid and between its points.  Cost: 2 s on one thread.

    The highest mode turns by 0.022² (πn/2)³ h in a step h, 5.2 at the default; keep this below 2π.  A mode
    that turns by 2π is in resonance with the steps and grows, to 1e-11 with ``every = 32``.
    """
    t, x, k = times(m), places(n), wavenumbers(n)
    k[-1] = 0.0  # the highest mode is a cosine alone, whose odd derivatives vanish on the grid
    scheme = ETDRK4.of(1j * DISPERSION**2 * k**3, 1.0 / ((m - 1) * every))
    derivative = -0.5j * k  # of -u²/2

    def nonlinear(now: float, v: Tensor) -> Tensor:
        squares: Tensor = torch.fft.rfft(torch.fft.irfft(v, n).square())
        return derivative * squares

    u = torch.empty(m, n, dtype=torch.float64, device="cpu")
    for i, v in enumerate(scheme.march(torch.fft.rfft(torch.cos(math.pi * x)), nonlinear, m, every)):
        u[i] = torch.fft.irfft(v, n)
        if tell is not None and i and i % 128 == 0:
            tell(f"kdv: {i} of {m - 1} times")
    return Solution("kdv", SETTINGS, t, x, u)
