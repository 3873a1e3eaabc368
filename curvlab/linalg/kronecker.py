"""Kronecker products as operators on a layer's ``[o, i]`` matrix, without forming them.

With PyTorch's row-major ``vec``, ``(B ⊗ A) vec(V) = vec(B V Aᵀ)``: B acts on the output side
(rows), A on the input side (columns, the bias column included).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.operator import BlockOperator
from curvlab.linalg.outer import Outer


class Factor(Protocol):
    """One symmetric side of a Kronecker product: any structured matrix of dimension d."""

    def __matmul__(self, x: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]: ...

    def rmatmul(self, x: Float[Tensor, "k d"], out: Tensor | None = None) -> Float[Tensor, "k d"]:
        """``x M``, into ``out`` if given."""

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product with ``columns`` vectors."""


@dataclass(frozen=True)
class Kronecker(BlockOperator):
    """``V ↦ B V A`` for symmetric B ``[o, o]`` and A ``[i, i]``; ``None`` stands for the identity.

    For ``V = leftᵀ right`` with r rows it compares ``B (leftᵀ right) A`` with
    ``(left B)ᵀ (right A)`` by their flops and takes the cheaper; the latter stays factored.
    """

    B: Factor | None
    A: Factor | None

    def product(self, v: Tensor | Outer, out: Tensor | None = None) -> Tensor | Outer:
        if isinstance(v, Outer):
            if self._factored_is_cheaper(v):
                left = v.left if self.B is None else self.B.rmatmul(v.left)
                right = v.right if self.A is None else self.A.rmatmul(v.right)
                return Outer(left, right)
            v = v.dense()
        w = v if self.B is None else self.B @ v
        if self.A is not None:
            return self.A.rmatmul(w, out)
        return w if out is None else out.copy_(w)

    def _factored_is_cheaper(self, v: Outer) -> bool:
        (r, o), i = v.left.shape, v.right.shape[1]
        through_factors = through_matrix = 0.0  # both pay 2·r·o·i for leftᵀ right
        if self.B is not None:
            through_factors, through_matrix = self.B.flops(r), self.B.flops(i)
        if self.A is not None:
            through_factors += self.A.flops(r)
            through_matrix += self.A.flops(o)
        return through_factors < through_matrix


@dataclass(frozen=True)
class KroneckerSum(BlockOperator):
    """``V ↦ Σ_t B_t V A_t``: a Kronecker product for each term of a loss."""

    terms: tuple[Kronecker, ...]

    def product(self, v: Tensor | Outer, out: Tensor | None = None) -> Tensor:
        V = v.dense() if isinstance(v, Outer) else v
        first, *others = self.terms
        image = first @ V
        for term in others:
            image = image + term @ V
        return image if out is None else out.copy_(image)


@dataclass(frozen=True)
class GramKronecker(BlockOperator):
    """``V ↦ GᵀG V AᵀA`` from the rows G ``[r, o]`` and A ``[r', i]``; neither Gram is formed.

    Costs 2·(r + r')·o·i + 4·r·r'·(i or o) flops and r·r' scalars (arXiv 2101.00218).
    ``G = None`` is the identity on the output side.
    """

    G: Float[Tensor, "r o"] | None
    A: Float[Tensor, "q i"]

    def product(self, v: Tensor | Outer, out: Tensor | None = None) -> Tensor:
        V = v.dense() if isinstance(v, Outer) else v
        if self.G is None:
            return torch.mm(V @ self.A.mT, self.A, out=out)
        inner = (self.G @ V) @ self.A.mT  # [r, r']
        return torch.mm(self.G.mT, inner @ self.A, out=out)


@dataclass(frozen=True)
class GramDiagonal(BlockOperator):
    """``V ↦ GᵀG V Diag(d)`` from the rows G ``[r, o]``; ``None`` is the identity on the output side."""

    G: Float[Tensor, "r o"] | None
    d: Float[Tensor, " i"]

    def product(self, v: Tensor | Outer, out: Tensor | None = None) -> Tensor:
        V = (v.dense() if isinstance(v, Outer) else v) * self.d
        if self.G is None:
            return V if out is None else out.copy_(V)
        return torch.mm(self.G.mT, self.G @ V, out=out)


@dataclass(frozen=True)
class KroneckerEigen(BlockOperator):
    """``V ↦ Q_B [ (Q_Bᵀ V Q_A) ∘ D ] Q_Aᵀ`` with square Q and a weight D ``[o, i]`` per entry.

    ``None`` for a basis is the identity.  EKFAC's operator, and KFAC's with exact damping, with orthogonal
    Q; the inverse of a sum of two Kronecker products, with others.
    """

    Q_B: Float[Tensor, "o o"] | None
    Q_A: Float[Tensor, "i i"] | None
    D: Float[Tensor, "o i"]

    def product(self, v: Tensor | Outer, out: Tensor | None = None) -> Tensor:
        w = rotate(v, self.Q_B, self.Q_A) * self.D
        if self.Q_B is not None:
            w = self.Q_B @ w
        if self.Q_A is not None:
            return torch.mm(w, self.Q_A.mT, out=out)
        return w if out is None else out.copy_(w)


def rotate(v: Tensor | Outer, Q_B: Tensor | None, Q_A: Tensor | None) -> Float[Tensor, "o i"]:
    """``Q_Bᵀ V Q_A``: a block's matrix in an eigenbasis, through the factors where those are cheaper."""
    if isinstance(v, Outer):
        (r, o), i = v.left.shape, v.right.shape[1]
        through_factors = (r * o * o if Q_B is not None else 0) + (r * i * i if Q_A is not None else 0)
        through_matrix = (o * o * i if Q_B is not None else 0) + (o * i * i if Q_A is not None else 0)
        if through_factors < through_matrix:
            left = v.left if Q_B is None else v.left @ Q_B
            right = v.right if Q_A is None else v.right @ Q_A
            return left.mT @ right
        v = v.dense()
    w = v if Q_B is None else Q_B.mT @ v
    return w if Q_A is None else w @ Q_A
