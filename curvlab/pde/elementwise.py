"""Elementwise functions with their derivatives up to the fourth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

#: ``σ, σ', …`` up to an order, at z
Derivatives = Callable[[Tensor, int], Sequence[Tensor]]


def _tanh(z: Tensor, order: int) -> Sequence[Tensor]:
    t = torch.tanh(z)
    slope = 1 - t * t
    found = [t, slope]
    if order > 1:
        found.append(-2 * t * slope)
    if order > 2:
        found.append(slope * (6 * t * t - 2))
    if order > 3:
        found.append(slope * t * (16 - 24 * t * t))
    return found


def _sigmoid(z: Tensor, order: int) -> Sequence[Tensor]:
    s = torch.sigmoid(z)
    slope = s * (1 - s)
    found = [s, slope, slope * (1 - 2 * s)]
    if order > 2:
        found.append(slope * (1 - 6 * slope))
    if order > 3:
        found.append(found[2] * (1 - 12 * slope))
    return found


def _softplus(z: Tensor, order: int) -> Sequence[Tensor]:
    return [F.softplus(z), *_sigmoid(z, max(order - 1, 1))]


def _sin(z: Tensor, order: int) -> Sequence[Tensor]:
    s, c = torch.sin(z), torch.cos(z)
    return [s, c, -s, -c, s]


def _cos(z: Tensor, order: int) -> Sequence[Tensor]:
    s, c = torch.sin(z), torch.cos(z)
    return [c, -s, -c, s, c]


def _exp(z: Tensor, order: int) -> Sequence[Tensor]:
    return [torch.exp(z)] * (order + 1)


def _log(z: Tensor, order: int) -> Sequence[Tensor]:
    return [torch.log(z), *power(-1.0)(z, max(order - 1, 0))]


def _times_argument(inner: Derivatives) -> Derivatives:
    """``z f(z)``, whose k-th derivative is ``z f^(k) + k f^(k-1)``."""

    def derivatives(z: Tensor, order: int) -> Sequence[Tensor]:
        f = inner(z, order)
        return [z * f[0], *(z * f[k] + k * f[k - 1] for k in range(1, order + 1))]

    return derivatives


def _normal(z: Tensor, order: int) -> Sequence[Tensor]:
    """The normal distribution function."""
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    found = [0.5 * (1 + torch.erf(z / math.sqrt(2))), density]
    if order > 1:
        found.append(-z * density)
    if order > 2:
        found.append((z * z - 1) * density)
    if order > 3:
        found.append((3 - z * z) * z * density)
    return found


def power(exponent: float) -> Derivatives:
    """``z^p``."""

    def derivatives(z: Tensor, order: int) -> Sequence[Tensor]:
        found, factor = [], 1.0
        for k in range(order + 1):
            found.append(factor * z ** (exponent - k) if factor else torch.zeros_like(z))
            factor *= exponent - k
        return found

    return derivatives


#: by the name of the torch function
SMOOTH: dict[str, Derivatives] = {
    "cos": _cos,
    "exp": _exp,
    "gelu": _times_argument(_normal),
    "log": _log,
    "reciprocal": power(-1.0),
    "sigmoid": _sigmoid,
    "silu": _times_argument(_sigmoid),
    "sin": _sin,
    "softplus": _softplus,
    "sqrt": power(0.5),
    "square": power(2.0),
    "tanh": _tanh,
}
