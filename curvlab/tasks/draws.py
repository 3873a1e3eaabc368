"""Random numbers that define a problem: a stream of its own, apart from torch's global generator."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Draws(ABC):
    """Draws in float64 on the CPU; a seed gives the same numbers in the same order."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    @abstractmethod
    def __call__(self, *shape: int) -> Tensor:
        """The next numbers, as a tensor of this shape."""


class Normal(Draws):
    """Draws from N(0, 1)."""

    def __call__(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, device="cpu", generator=self._generator)


class Uniform(Draws):
    """Draws from [0, 1)."""

    def __call__(self, *shape: int) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, device="cpu", generator=self._generator)
