"""Diagonal matrices."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.factors import powers
from curvlab.linalg.lookups import AnyRows, squares
from curvlab.linalg.verdict import holds
from curvlab.protocols.backend import Backend
from curvlab.protocols.structure import Family, Gram, Group, Structure


@dataclass(frozen=True)
class DiagonalMatrix(Structure):
    """``Diag(entries)``, entries ``[d]``."""

    entries: Float[Tensor, "*b d"]
    family: Family

    @property
    def d(self) -> int:
        return self.entries.shape[-1]

    def dense(self) -> Float[Tensor, "*b d d"]:
        return torch.diag_embed(self.entries)

    def tensors(self) -> dict[str, Tensor]:
        return {"entries": self.entries}

    def __matmul__(self, x: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        return self.entries.unsqueeze(-1) * x

    def rmatmul(self, x: Float[Tensor, "*b k d"], out: Tensor | None = None) -> Float[Tensor, "*b k d"]:
        entries = self.entries if self.entries.dim() == 1 else self.entries.unsqueeze(-2)
        return torch.mul(x, entries, out=out)

    def flops(self, columns: int) -> float:
        return float(self.d * columns)

    def shift_(self, c: float) -> DiagonalMatrix:
        self.entries.add_(c)
        return self

    def mean_diagonal(self) -> Float[Tensor, "*b"]:
        return self.entries.mean(-1)

    def norm(self) -> Float[Tensor, "*b"]:
        norm: Tensor = torch.linalg.vector_norm(self.entries, dim=-1)
        return norm

    def spectral_norm(self) -> Float[Tensor, "*b"]:
        return self.entries.abs().amax(-1)

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.entries.shape[:-1])


@dataclass(frozen=True)
class Diagonal(Family, Gram, Group):
    """Π(S) = diag(S).  d scalars; every operation costs O(n d) or O(d)."""

    rotates = False
    averages_lookups = True

    def project(self, S: Float[Tensor, "*b d d"]) -> DiagonalMatrix:
        return DiagonalMatrix(S.diagonal(dim1=-2, dim2=-1).clone(), self)

    def zeros(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> DiagonalMatrix:
        return DiagonalMatrix(like.new_zeros(*batch, d), self)

    def eye(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> DiagonalMatrix:
        return DiagonalMatrix(like.new_ones(*batch, d), self)

    def scalars(self, d: int) -> int:
        return d

    def average_(self, M: Structure, keep: float, X: AnyRows, weight: float, backend: Backend) -> None:
        assert isinstance(M, DiagonalMatrix)
        M.entries.mul_(keep).add_(squares(X), alpha=weight)

    def inverse(self, M: Structure, shift: Tensor | float, backend: Backend) -> DiagonalMatrix:
        assert isinstance(M, DiagonalMatrix)
        damped = M.entries + shift
        if not holds((damped > 0).all()):
            raise NotPositiveDefinite(f"a diagonal factor of dimension {M.d} has an entry ≤ 0")
        return DiagonalMatrix(damped.reciprocal(), self)

    def eigh(self, M: Structure, backend: Backend) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"] | None]:
        assert isinstance(M, DiagonalMatrix)
        if not holds(torch.isfinite(M.entries).all()):
            raise NotPositiveDefinite(f"a diagonal factor of dimension {M.d} has a non-finite entry")
        return M.entries.clamp(min=0.0), None

    def power(self, M: Structure, p: float, shift: Tensor | float, backend: Backend) -> DiagonalMatrix:
        return DiagonalMatrix(powers(self.eigh(M, backend)[0] + shift, p), self)

    def member(self, A: Float[Tensor, "*b d d"]) -> DiagonalMatrix:
        return self.project(A)

    def congruence(self, K: Structure, X: AnyRows) -> DiagonalMatrix:
        assert isinstance(K, DiagonalMatrix)
        return DiagonalMatrix(squares(X).mul_(K.entries.square()), self)

    def square(self, K: Structure) -> DiagonalMatrix:
        assert isinstance(K, DiagonalMatrix)
        return DiagonalMatrix(K.entries.square(), self)

    def product(self, K: Structure, M: Structure) -> DiagonalMatrix:
        assert isinstance(K, DiagonalMatrix)
        assert isinstance(M, DiagonalMatrix)
        return DiagonalMatrix(K.entries * M.entries, self)

    def gramian(self, K: Structure) -> DiagonalMatrix:
        return self.square(K)
