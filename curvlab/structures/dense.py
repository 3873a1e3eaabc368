"""Dense matrices: no pattern at all."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.protocols.backend import Backend
from curvlab.protocols.structure import Family, Gram, Group, Structure


@dataclass(frozen=True)
class DenseMatrix(Structure):
    """A full ``[d, d]`` matrix."""

    matrix: Float[Tensor, "d d"]
    family: Family

    @property
    def d(self) -> int:
        return self.matrix.shape[-1]

    def dense(self) -> Float[Tensor, "d d"]:
        return self.matrix

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def __matmul__(self, x: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
        return self.matrix @ x

    def rmatmul(self, x: Float[Tensor, "k d"], out: Tensor | None = None) -> Float[Tensor, "k d"]:
        return torch.matmul(x, self.matrix, out=out)

    def mean_diagonal(self) -> Float[Tensor, ""]:
        return self.matrix.diagonal(dim1=-2, dim2=-1).mean(-1)


@dataclass(frozen=True)
class Dense(Family, Gram, Group):
    """Every entry free: Π(S) = S.  d² scalars; a Gram costs 2·n·d² flops, an inverse about d³."""

    def project(self, S: Float[Tensor, "d d"]) -> DenseMatrix:
        return DenseMatrix(S.clone(), self)

    def zeros(self, d: int, *, like: Tensor) -> DenseMatrix:
        return DenseMatrix(like.new_zeros(d, d), self)

    def eye(self, d: int, *, like: Tensor) -> DenseMatrix:
        return DenseMatrix(torch.eye(d, dtype=like.dtype, device=like.device), self)

    def scalars(self, d: int) -> int:
        return d * d

    def average_(
        self, M: Structure, keep: float, X: Float[Tensor, "n d"], weight: float, backend: Backend
    ) -> None:
        backend.gram_(M.dense(), keep, X, weight)

    def inverse(self, M: Structure, shift: Tensor | float, backend: Backend) -> DenseMatrix:
        return DenseMatrix(backend.inverse(M.dense(), shift), self)

    def eigh(self, M: Structure, backend: Backend) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"] | None]:
        values, vectors = backend.eigh(M.dense())
        return values.clamp_(min=0.0), vectors

    def congruence(self, K: Structure, X: Float[Tensor, "n d"]) -> DenseMatrix:
        S = X @ K.dense()
        return DenseMatrix(S.mT @ S, self)
