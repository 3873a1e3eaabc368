"""The tanh stabilizer: bounds a signal before its Fourier transform, and keeps no copy for the way back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class RecomputedTanh(torch.autograd.Function):
    """``tanh(x)`` that keeps x instead of its result.

    torch keeps the result of tanh.  In a Fourier layer the pointwise branch keeps x already, so keeping x
    costs no bytes; the derivative costs one more tanh.  Derivatives of any order, forward and backward.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        """``tanh(x)``."""
        return x.tanh()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Keep x."""
        (x,) = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        """``g (1 − tanh²(x))``."""
        (x,) = ctx.saved_tensors
        slope: Tensor = 1.0 - x.tanh().square()
        return g * slope

    @staticmethod
    def jvp(ctx: Any, v: Tensor) -> Tensor:
        """``v (1 − tanh²(x))``."""
        (x,) = ctx.saved_tensors
        slope: Tensor = 1.0 - x.tanh().square()
        return v * slope


def stabilized(x: Tensor) -> Tensor:
    """``tanh(x)``, entry by entry, in the dtype of x."""
    found: Tensor = RecomputedTanh.apply(x)  # type: ignore[no-untyped-call]
    return found
