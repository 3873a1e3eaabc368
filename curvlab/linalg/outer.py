"""Matrices held as outer products ``leftᵀ right``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Outer:
    """The matrix ``leftᵀ right``, kept as its factors: left ``[r, o]``, right ``[r, i]``."""

    left: Float[Tensor, "r o"]
    right: Float[Tensor, "r i"]

    def to(self, dtype: torch.dtype) -> Outer:
        """The same factors in another dtype."""
        return Outer(self.left.to(dtype), self.right.to(dtype))

    def dense(self, out: Float[Tensor, "o i"] | None = None) -> Float[Tensor, "o i"]:
        """The ``[o, i]`` matrix; costs 2·r·o·i flops."""
        if out is None:
            return self.left.mT @ self.right
        return torch.mm(self.left.mT, self.right, out=out)

    def scaled(self, factor: float | Tensor) -> Outer:
        """``factor`` times the matrix, still factored."""
        return Outer(self.left * factor, self.right)

    def bound(self) -> Float[Tensor, ""]:
        """``‖left‖ ‖right‖``, at least the Frobenius norm of the matrix."""
        left: Tensor = torch.linalg.vector_norm(self.left)
        return left.mul_(torch.linalg.vector_norm(self.right))

    def dot(self, other: Outer) -> Float[Tensor, ""]:
        """Frobenius inner product ``⟨L₁ᵀR₁, L₂ᵀR₂⟩ = ⟨L₁L₂ᵀ, R₁R₂ᵀ⟩``; costs 2·r₁·r₂·(o + i) flops."""
        return torch.sum((self.left @ other.left.mT).mul_(self.right @ other.right.mT))

    def cheap(self, other: Outer) -> bool:
        """Whether ``dot`` costs less than forming one of the two matrices."""
        (p, o), (q, i) = self.left.shape, other.right.shape
        return p * q * (o + i) < min(p, q) * o * i
