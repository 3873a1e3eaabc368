"""A structure in order, to be broken in one place: every entry stored, every method its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from curvlab.linalg.kronecker import Factor
from curvlab.protocols.backend import Backend
from curvlab.protocols.structure import Family, Gram, Group, Structure


@dataclass(frozen=True)
class SoundMatrix(Structure):
    """A full matrix."""

    matrix: Tensor
    family: Family

    @property
    def d(self) -> int:
        return self.matrix.shape[-1]

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.matrix.shape[:-2])

    def dense(self) -> Tensor:
        return self.matrix

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix}

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.matrix @ x

    def rmatmul(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.matmul(x, self.matrix, out=out)

    def shift_(self, c: float) -> Any:
        self.matrix.diagonal(dim1=-2, dim2=-1).add_(c)
        return self

    def mean_diagonal(self) -> Tensor:
        return self.matrix.diagonal(dim1=-2, dim2=-1).mean(-1)

    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.matrix, dim=(-2, -1))


@dataclass(frozen=True)
class Sound(Family, Group):
    """Full matrices; ``of`` is what its members are."""

    of: ClassVar[type[SoundMatrix]] = SoundMatrix

    def made(self, matrix: Tensor) -> Any:
        return self.of(matrix, self)

    def project(self, S: Tensor) -> Any:
        return self.made(S.contiguous().clone())

    def zeros(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> Any:
        return self.made(like.new_zeros(*batch, d, d))

    def eye(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> Any:
        eye = torch.eye(d, dtype=like.dtype, device=like.device)
        return self.made(eye.expand(*batch, d, d).clone(memory_format=torch.contiguous_format))

    def scalars(self, d: int) -> int:
        return d * d

    def member(self, A: Tensor) -> Any:
        return self.made(A.clone())

    def congruence(self, K: Structure, X: Tensor) -> Any:
        rows = K.rmatmul(X)
        return self.made(rows.mT @ rows)

    def square(self, K: Structure) -> Any:
        return self.made(K.dense().mT @ K.dense())

    def product(self, K: Structure, M: Structure) -> Any:
        return self.made(K.dense() @ M.dense())


@dataclass(frozen=True)
class SoundGram(Sound, Gram):
    """The same, as Gram matrices too."""

    def average_(self, M: Structure, keep: float, X: Tensor, weight: float, backend: Backend) -> None:
        backend.gram_(M.dense(), keep, X, weight)

    def inverse(self, M: Structure, shift: Tensor | float, backend: Backend) -> Factor:
        return SoundMatrix(backend.inverse(M.dense(), shift), self)

    def eigh(self, M: Structure, backend: Backend) -> tuple[Tensor, Tensor | None]:
        values, vectors = backend.eigh(M.dense())
        return values.clamp(min=0.0), vectors
