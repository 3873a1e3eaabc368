"""Equations with a known solution: what a network is to satisfy inside, and what it should come to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


class Equation(ABC):
    """``Σ_i first_i ∂_i u − Σ_i second_i ∂_i² u = source`` on the unit cube, u given on faces of it."""

    dimension: int  #: coordinates

    @abstractmethod
    def first(self) -> Float[Tensor, " d"]:
        """Coefficients of the first derivatives."""

    @abstractmethod
    def second(self) -> Float[Tensor, " d"]:
        """Coefficients of the second derivatives, to be subtracted."""

    @abstractmethod
    def source(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The right-hand side."""

    @abstractmethod
    def solution(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """u."""

    def faces(self) -> list[tuple[int, float]]:
        """Where u is given: axes and the side, 0 or 1."""
        return [(axis, side) for axis in range(self.dimension) for side in (0.0, 1.0)]


@dataclass(frozen=True)
class MinusLaplace(Equation):
    """``−Δu = source``."""

    dimension: int

    def first(self) -> Float[Tensor, " d"]:
        return torch.zeros(self.dimension, dtype=torch.float64)

    def second(self) -> Float[Tensor, " d"]:
        return torch.ones(self.dimension, dtype=torch.float64)


@dataclass(frozen=True)
class SineProduct(MinusLaplace):
    """``−Δu = d π² Π_i sin(π x_i)``, whose solution is ``u = Π_i sin(π x_i)``."""

    def source(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return self.dimension * math.pi**2 * self.solution(x)

    def solution(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return torch.sin(math.pi * x).prod(-1)


@dataclass(frozen=True)
class CosineSum(MinusLaplace):
    """``−Δu = π² Σ_i cos(π x_i)``, whose solution is ``u = Σ_i cos(π x_i)``; of any dimension."""

    def source(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return math.pi**2 * self.solution(x)

    def solution(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return torch.cos(math.pi * x).sum(-1)


@dataclass(frozen=True)
class HeatDecay(Equation):
    """``∂u/∂t = Δu``, whose solution is ``u = exp(−π² t/4) Σ_i sin(π x_i / 2)``; time is coordinate 0.

    Given at time 0 and on the faces of space.
    """

    dimension: int

    def first(self) -> Float[Tensor, " d"]:
        return torch.eye(self.dimension, dtype=torch.float64)[0]

    def second(self) -> Float[Tensor, " d"]:
        return 1.0 - self.first()

    def source(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        return torch.zeros_like(x[:, 0])

    def solution(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        t, space = x[:, 0], x[:, 1:]
        return torch.exp(-(math.pi**2) / 4 * t) * torch.sin(0.5 * math.pi * space).sum(-1)

    def faces(self) -> list[tuple[int, float]]:
        return [face for face in super().faces() if face != (0, 1.0)]
