"""A kink at the ends of a periodic interval, and what diffusion makes of it: known in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Kink:
    """``S_t = κ S_xx − d S`` on [-1, 1], periodic, from ``S = −(J/4) x²``, whose slope jumps by J at ±1.

    A grid does not resolve a kink, and interpolation near one is wrong in the fourth digit.  A solution that
    starts with a kink is interpolated after S is subtracted, which leaves a jump in the third derivative.
    """

    jump: float  #: J, the slope just right of -1 minus the slope just left of 1
    diffusion: float  #: κ; images of the kinks at ±3 are left out, so κ t must be below 0.02
    decay: float  #: d

    def __call__(self, t: Float[Tensor, "*t"], x: Float[Tensor, "*x"]) -> Float[Tensor, "*tx"]:
        """S, exact to rounding; ``t`` and ``x`` broadcast."""
        spread = self.diffusion * t
        smoothed = _ramp(x - 1, spread) + _ramp(-1 - x, spread) - (x.square() + 2 * spread) / 4
        return smoothed * self.jump * torch.exp(-self.decay * t)


def _ramp(y: Tensor, spread: Tensor) -> Tensor:
    """``max(y, 0)`` after diffusion: κ t = ``spread``."""
    width = (4 * spread).sqrt().clamp(min=torch.finfo(spread.dtype).tiny)
    z = y / width
    return torch.exp(-z.square()) * width / (2 * math.sqrt(math.pi)) + torch.erfc(-z) * y / 2
