"""Burgers' equation, ``u_t + (u²/2)_x = ν u_xx`` with period 1, by Fourier series.

All examples are solved at once, in the dtype of their coefficients (complex128 for data).  Diffusion is exact
in each step (integrating factor); the rest is Runge and Kutta's method of fourth order.  The upper third of
the wave numbers is set to zero before the square, so that none is aliased.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from curvlab.errors import DataError

#: share of a solution's energy that its highest kept wave numbers may have: more is not resolved
UNRESOLVED = 1e-10


def solve(coefficients: Complex[Tensor, "n k"], nu: float, time: float, steps: int) -> Complex[Tensor, "n k"]:
    """Coefficients at ``time``, of signals on 2(k − 1) points; as ``torch.fft.rfft``, ``norm="forward"``.

    Raises ``DataError`` where a solution is not finite, or not resolved by its wave numbers.
    """
    n_modes = coefficients.shape[-1]
    points, kept = 2 * (n_modes - 1), 2 * (n_modes - 1) // 3
    k = 2 * math.pi * torch.arange(n_modes, dtype=coefficients.real.dtype, device=coefficients.device)
    dt = time / steps
    half = torch.exp(-nu * k.square() * (dt / 2))
    whole = half.square()
    slope = -0.5j * k * (k < 2 * math.pi * kept)

    def rate(v: Tensor) -> Tensor:
        u = torch.fft.irfft(v * (k < 2 * math.pi * kept), n=points, norm="forward")
        found: Tensor = slope * torch.fft.rfft(u.square(), norm="forward")
        return found

    v = coefficients
    for _ in range(steps):
        a = rate(v)
        b = rate(half * (v + dt / 2 * a))
        c = rate(half * v + dt / 2 * b)
        d = rate(whole * v + dt * half * c)
        v = whole * v + dt / 6 * (whole * a + 2 * half * (b + c) + d)
    _require_resolved(v, kept, nu, steps)
    return v


def at_points(v: Complex[Tensor, "n k"], grid: int) -> Float[Tensor, "n g"]:
    """The signals at j/grid, j from 0 on: their series, on any number of points."""
    k = torch.arange(v.shape[-1], dtype=v.real.dtype, device=v.device)
    turns = torch.arange(grid, dtype=v.real.dtype, device=v.device)[:, None] * k % grid
    phase = 2 * math.pi / grid * turns
    once = torch.where((k == 0) | (k == len(k) - 1), 1.0, 2.0)  # and their conjugates at −k
    return (v.real * once) @ phase.cos().mT - (v.imag * once) @ phase.sin().mT


def _require_resolved(v: Tensor, kept: int, nu: float, steps: int) -> None:
    if not bool(torch.view_as_real(v).isfinite().all()):
        raise DataError(f"Burgers' equation with nu = {nu:g}: not finite after {steps} steps; use more steps")
    energy = v.abs().square()
    share = float((energy[:, kept - kept // 8 : kept].sum(1) / energy.sum(1).clamp_min(1e-300)).max())
    if share > UNRESOLVED:
        raise DataError(
            f"Burgers' equation with nu = {nu:g}: the highest of {kept} wave numbers have {share:.1e} of the"
            f" energy; expected at most {UNRESOLVED:g}. Use a larger nu"
        )
