"""The examples of a step on their way from the sampler to the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from curvlab.protocols.sampler import Draw


def placed(draw: Draw, move: Callable[[Tensor], Tensor]) -> Draw:
    """``draw`` with its indices moved, each tensor once: two purposes that share one share it afterwards."""
    moved: dict[int, Tensor] = {}

    def once(indices: Tensor) -> Tensor:
        if id(indices) not in moved:
            moved[id(indices)] = move(indices)
        return moved[id(indices)]

    gradient, curvature, acceptance = (once(t) for t in (draw.gradient, draw.curvature, draw.acceptance))
    return replace(draw, gradient=gradient, curvature=curvature, acceptance=acceptance)
