"""The Allen-Cahn equation of the PINN benchmarks, by a Fourier series and exponential steps."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from curvlab_pinn.references.etdrk4 import ETDRK4
from curvlab_pinn.references.grid import places, times, wavenumbers
from curvlab_pinn.references.kink import Kink
from curvlab_pinn.references.solution import Solution

DIFFUSION, REACTION = 1e-4, 5.0
SETTINGS = {"diffusion": DIFFUSION, "reaction": REACTION}

#: The slope of x² cos(πx) is 2 at -1 and -2 at 1.  There u = -1, where the reaction's derivative is -10.
KINK = Kink(jump=4.0, diffusion=DIFFUSION, decay=2 * REACTION)


def allen_cahn_solution(
    n: int = 2048, m: int = 257, every: int = 6, tell: Callable[[str], None] | None = None
) -> Solution:
    """``u_t = 0.0001 u_xx + 5u − 5u³`` on [0, 1] × [-1, 1], periodic in x, ``u(0, x) = x² cos(π x)``.

    The grid has n points in x, even, and m ≥ 12 times, ``every`` steps of ``ETDRK4`` apart.
    Accuracy, largest error: 2e-10 where t ≥ 0.03; 1e-9 before, near x = ±1.
    Cost: 2 s on one thread.  The benchmark is that of Raissi, Perdikaris and Karniadakis 2019 (J. Comput.
    Phys. 378, 686-707).

    The initial value has a kink at ±1.  With S of ``Kink``, w = u − S has none:

        w_t = 0.0001 w_xx − 10 w + 15 u − 5 u³

    The derivative of ``15 u − 5 u³`` is 0 at u = −1, so the right-hand side has no kink at ±1 either.
    """
    t, x, k = times(m), places(n), wavenumbers(n)
    scheme = ETDRK4.of(-DIFFUSION * k.square() - KINK.decay, 1.0 / ((m - 1) * every))

    @lru_cache(maxsize=1)  # a step has two stages in its middle
    def kink(now: float) -> Tensor:
        return KINK(x.new_tensor(now), x)

    def nonlinear(now: float, v: Tensor) -> Tensor:
        u: Tensor = torch.fft.irfft(v, n) + kink(now)
        found: Tensor = torch.fft.rfft((REACTION + KINK.decay - REACTION * u.square()) * u)
        return found

    u = torch.empty(m, n, dtype=torch.float64, device="cpu")
    start = torch.fft.rfft(x.square() * torch.cos(math.pi * x) - KINK(t[0], x))
    for i, v in enumerate(scheme.march(start, nonlinear, m, every)):
        u[i] = torch.fft.irfft(v, n) + KINK(t[i], x)
        if tell is not None and i and i % 64 == 0:
            tell(f"allen-cahn: {i} of {m - 1} times")
    return Solution("allen-cahn", SETTINGS, t, x, u, KINK)
