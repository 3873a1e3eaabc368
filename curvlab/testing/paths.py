"""A path of damped solutions by a dense matrix, for tests of step rules and of preconditioners."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.path import DampedPath

#: halvings of an interval of λ
BISECTIONS = 100


@dataclass(frozen=True)
class DensePath(DampedPath):
    """``x(λ) = scale · (C + λI)⁻¹ g`` for a positive definite C, with λ in units of C.

    A ``scale`` of s > 0 is the path of C/s.  ``bent`` multiplies the curvature that is predicted, and
    nothing else.  Solutions are made of C's eigenvectors.
    """

    C: Float[Tensor, "D D"]
    gradient: BlockVector
    scale: float = 1.0
    bent: float = 1.0

    least = 0.0

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor, list[tuple[float, float]]]:
        """Eigenvalues, eigenvectors, and each eigenvalue with the gradient's squared coefficient."""
        values, vectors = torch.linalg.eigh(self.C)
        squares = (vectors.mT @ self.gradient.flat).square()
        return values, vectors, list(zip(values.tolist(), squares.tolist(), strict=True))

    @property
    def longest(self) -> float:
        return self._length(0.0)

    def damping(self, radius: float) -> float:
        if not radius < self.longest:
            return 0.0
        low, high = 0.0, abs(self.scale) * float(self.gradient.norm()) / radius
        for _ in range(BISECTIONS):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self._length(middle) > radius else (low, middle)
        return high

    def at(self, damping: float) -> BlockVector:
        return self._solved(self.gradient.flat, damping)

    def predicted(self, damping: float) -> float:
        x = self.at(damping).flat
        if not self.scale:
            return 0.0
        curvature = float(x @ (self.C @ x)) / abs(self.scale) * self.bent
        return -abs(float(self.gradient.flat @ x)) + 0.5 * curvature

    def beside(self, v: BlockVector, share: float, damping: float) -> BlockVector:
        left = self.gradient.flat
        if self.scale:
            left = left - (share / self.scale) * (self.C @ v.flat)
        return self._solved(left, damping).add_(v, share)

    def _length(self, damping: float) -> float:
        return abs(self.scale) * math.sqrt(sum(b / (s + damping) ** 2 for s, b in self._spectrum[2]))

    def _solved(self, right: Tensor, damping: float) -> BlockVector:
        values, vectors, _ = self._spectrum
        x = vectors @ ((vectors.mT @ right) / (values + damping))
        return BlockVector(self.gradient.layout, self.scale * x)
