"""Chessboards: matrices in which even indices meet even ones, odd indices odd ones, and no others."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from curvlab.structures.entries import EntryFamily, EntryMatrix


@dataclass(frozen=True)
class HelloMatrix(EntryMatrix):
    """The tensors of one matrix, or of a stack of them."""

    even: Float[Tensor, "*b p p"]  #: rows and columns 0, 2, 4, …
    odd: Float[Tensor, "*b q q"]  #: rows and columns 1, 3, 5, …

    def dense(self) -> Float[Tensor, "*b d d"]:
        d = self.even.shape[-1] + self.odd.shape[-1]
        matrix = self.even.new_zeros(*self.even.shape[:-2], d, d)
        matrix[..., 0::2, 0::2] = self.even
        matrix[..., 1::2, 1::2] = self.odd
        return matrix

    @property
    def d(self) -> int:
        return self.even.shape[-1] + self.odd.shape[-1]

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.even.shape[:-2])

    def __matmul__(self, x: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        y = x.new_empty(x.shape)
        y[..., 0::2, :] = self.even @ x[..., 0::2, :]
        y[..., 1::2, :] = self.odd @ x[..., 1::2, :]
        return y

    def rmatmul(self, x: Float[Tensor, "*b k d"], out: Tensor | None = None) -> Float[Tensor, "*b k d"]:
        y = x.new_empty(x.shape) if out is None else out
        y[..., 0::2] = x[..., 0::2] @ self.even
        y[..., 1::2] = x[..., 1::2] @ self.odd
        return y

    def flops(self, columns: int) -> float:
        return 2.0 * columns * (self.even.shape[-1] ** 2 + self.odd.shape[-1] ** 2)


@dataclass(frozen=True)
class Hello(EntryFamily[HelloMatrix]):
    """The family: half the scalars of a dense matrix, closed under products."""

    def member(self, A: Float[Tensor, "*b d d"]) -> HelloMatrix:
        return HelloMatrix(self, A[..., 0::2, 0::2].clone(), A[..., 1::2, 1::2].clone())

    def square(self, K: HelloMatrix) -> HelloMatrix:
        return HelloMatrix(self, K.even.mT @ K.even, K.odd.mT @ K.odd)
