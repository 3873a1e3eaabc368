"""ETDRK4: steps of fourth order for ``v' = L v + N(t, v)`` with a diagonal L, however stiff."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Complex, Inexact
from torch import Tensor

#: N(t, v), in Fourier coefficients
Nonlinear = Callable[[float, Complex[Tensor, " k"]], Complex[Tensor, " k"]]

#: points of the circle on which the coefficients are averaged; 32 give all digits (Kassam and Trefethen)
CIRCLE = 32


@dataclass(frozen=True, eq=False)
class ETDRK4:
    """The scheme of Cox and Matthews 2002 for one step length, with the stable coefficients.

    ``exp(hL)`` is exact, so the step length h is bounded by N alone.  Differences such as
    ``(exp(z) - 1) / z`` lose all digits near z = 0; each is a mean over a circle around z instead
    (Kassam and Trefethen 2005, SIAM J. Sci. Comput. 26, 1214-1233).  One step costs four evaluations of N.
    """

    step: float  #: h
    whole: Inexact[Tensor, " k"]  #: exp(hL)
    half: Inexact[Tensor, " k"]  #: exp(hL/2)
    stage: Inexact[Tensor, " k"]  #: weight of N in the three inner stages
    first: Inexact[Tensor, " k"]  #: weight of N at the start
    middle: Inexact[Tensor, " k"]  #: weight of the sum of N at the two middle stages
    last: Inexact[Tensor, " k"]  #: weight of N at the end

    @classmethod
    def of(cls, linear: Inexact[Tensor, " k"], step: float) -> ETDRK4:
        """The scheme for L = ``linear``; its weights are real where L is."""
        angles = (torch.arange(CIRCLE, dtype=torch.float64, device="cpu") + 0.5) * (2 * math.pi / CIRCLE)
        z = step * linear.unsqueeze(-1) + torch.polar(torch.ones_like(angles), angles)
        e, cube = torch.exp(z), z**3

        def mean(f: Tensor) -> Tensor:
            weight = step * f.mean(-1)
            return weight if linear.is_complex() else weight.real

        return cls(
            step,
            torch.exp(step * linear),
            torch.exp(step / 2 * linear),
            mean((torch.exp(z / 2) - 1) / z),
            mean((-4 - z + e * (4 - 3 * z + z**2)) / cube),
            mean(2 * (2 + z + e * (z - 2)) / cube),
            mean((-4 - 3 * z - z**2 + e * (4 - z)) / cube),
        )

    def after(self, t: float, v: Complex[Tensor, " k"], nonlinear: Nonlinear) -> Complex[Tensor, " k"]:
        """The solution at t + h, from ``v`` at t."""
        h = self.step
        forward = self.half * v
        at_v = nonlinear(t, v)
        a = forward + self.stage * at_v
        at_a = nonlinear(t + h / 2, a)
        at_b = nonlinear(t + h / 2, forward + self.stage * at_a)
        at_c = nonlinear(t + h, self.half * a + self.stage * (2 * at_b - at_v))
        return self.whole * v + self.first * at_v + self.middle * (at_a + at_b) + self.last * at_c

    def march(
        self, v: Complex[Tensor, " k"], nonlinear: Nonlinear, times: int, every: int
    ) -> Iterator[Complex[Tensor, " k"]]:
        """The solution at ``times`` equidistant times from 0 on, ``every`` steps apart."""
        yield v
        for k in range((times - 1) * every):
            v = self.after(k * self.step, v, nonlinear)
            if (k + 1) % every == 0:
                yield v
