"""Dense matrices: no pattern at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.factors import powers
from curvlab.linalg.gram import gram
from curvlab.linalg.psd import nonnegative
from curvlab.protocols.backend import Backend
from curvlab.protocols.structure import Family, Gram, Group, Structure


@dataclass(frozen=True)
class DenseMatrix(Structure):
    """A full ``[d, d]`` matrix."""

    matrix: Float[Tensor, "*b d d"]
    family: Family

    @property
    def d(self) -> int:
        return self.matrix.shape[-1]

    def dense(self) -> Float[Tensor, "*b d d"]:
        return self.matrix

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def __matmul__(self, x: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        return self.matrix @ x

    def rmatmul(self, x: Float[Tensor, "*b k d"], out: Tensor | None = None) -> Float[Tensor, "*b k d"]:
        return torch.matmul(x, self.matrix, out=out)

    def shift_(self, c: float) -> DenseMatrix:
        self.matrix.diagonal(dim1=-2, dim2=-1).add_(c)
        return self

    def mean_diagonal(self) -> Float[Tensor, "*b"]:
        return self.matrix.diagonal(dim1=-2, dim2=-1).mean(-1)

    def norm(self) -> Float[Tensor, "*b"]:
        norm: Tensor = torch.linalg.vector_norm(self.matrix, dim=(-2, -1))
        return norm

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.matrix.shape[:-2])


@dataclass(frozen=True)
class Dense(Family, Gram, Group):
    """Every entry free: Π(S) = S.  d² scalars; a Gram costs 2·n·d² flops, an inverse about d³."""

    def project(self, S: Float[Tensor, "*b d d"]) -> DenseMatrix:
        return DenseMatrix(S.clone(), self)

    def zeros(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> DenseMatrix:
        return DenseMatrix(like.new_zeros(*batch, d, d), self)

    def eye(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> DenseMatrix:
        return self.zeros(d, like=like, batch=batch).shift_(1.0)

    def scalars(self, d: int) -> int:
        return d * d

    def average_(
        self, M: Structure, keep: float, X: Float[Tensor, "n d"], weight: float, backend: Backend
    ) -> None:
        backend.gram_(M.dense(), keep, X, weight)

    def inverse(self, M: Structure, shift: Tensor | float, backend: Backend) -> DenseMatrix:
        return DenseMatrix(backend.inverse(M.dense(), shift), self)

    def eigh(self, M: Structure, backend: Backend) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        values, vectors = backend.eigh(M.dense())
        return nonnegative(values), vectors

    def power(self, M: Structure, p: float, shift: Tensor | float, backend: Backend) -> DenseMatrix:
        values, vectors = self.eigh(M, backend)
        return DenseMatrix((vectors * powers(values + shift, p)) @ vectors.mT, self)

    def member(self, A: Float[Tensor, "*b d d"]) -> DenseMatrix:
        return DenseMatrix(A.clone(), self)

    def congruence(self, K: Structure, X: Float[Tensor, "*b n d"]) -> DenseMatrix:
        matrix, (n, d) = K.dense(), X.shape[-2:]
        if n > 2 * d:  # Kᵀ (XᵀX) K costs n d² + 2 d³ and (X K)ᵀ (X K) costs 2 n d²
            return DenseMatrix(matrix.mT @ (gram(X) @ matrix), self)
        return DenseMatrix(gram(X @ matrix), self)

    def square(self, K: Structure) -> DenseMatrix:
        return DenseMatrix(gram(K.dense()), self)

    def product(self, K: Structure, M: Structure) -> DenseMatrix:
        return DenseMatrix(K.dense() @ M.dense(), self)
