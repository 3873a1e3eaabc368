"""Random numbers that define a problem: a stream of its own, apart from torch's global generator."""

from __future__ import annotations

import torch
from torch import Tensor


class Normal:
    """Draws from N(0, 1), in float64 on the CPU; a seed gives the same numbers in the same order."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, device="cpu", generator=self._generator)
