"""A structure chosen by dimension."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.kronecker import Factor
from curvlab.protocols.backend import Backend
from curvlab.protocols.bounds import Count, check_bounds
from curvlab.protocols.structure import Family, Gram, Group, Structure, as_gram, as_group
from curvlab.structures.dense import Dense
from curvlab_structures.block_diagonal import BlockDiagonal


@dataclass(frozen=True)
class Auto(Family, Gram, Group):
    """``narrow`` up to and including dimension ``limit``, ``wide`` above it: Π, scalars and flops are theirs.

    So that one very wide layer dominates neither state nor time.  Members belong to the family that
    was chosen, so only zeros, projections and the like come here; Gram or Group as far as that one is.
    """

    narrow: Family = Dense()
    wide: Family = BlockDiagonal(size=64)
    limit: Count = 1024

    def __post_init__(self) -> None:
        check_bounds(self)

    def at(self, d: int) -> Family:
        return (self.narrow if d <= self.limit else self.wide).at(d)

    def options(self) -> tuple[Family, ...]:
        return (*self.narrow.options(), *self.wide.options())

    def project(self, S: Float[Tensor, "*b d d"]) -> Structure:
        return self.at(S.shape[-1]).project(S)

    def zeros(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> Structure:
        return self.at(d).zeros(d, like=like, batch=batch)

    def eye(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> Structure:
        return self.at(d).eye(d, like=like, batch=batch)

    def scalars(self, d: int) -> int:
        return self.at(d).scalars(d)

    # Gram

    def average_(
        self, M: Structure, keep: float, X: Float[Tensor, "n d"], weight: float, backend: Backend
    ) -> None:
        as_gram(M.family, "auto").average_(M, keep, X, weight, backend)

    def inverse(self, M: Structure, shift: Tensor | float, backend: Backend) -> Factor:
        return as_gram(M.family, "auto").inverse(M, shift, backend)

    def eigh(self, M: Structure, backend: Backend) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"] | None]:
        return as_gram(M.family, "auto").eigh(M, backend)

    def power(self, M: Structure, p: float, shift: Tensor | float, backend: Backend) -> Factor:
        return as_gram(M.family, "auto").power(M, p, shift, backend)

    # Group

    def member(self, A: Float[Tensor, "*b d d"]) -> Structure:
        return as_group(self.at(A.shape[-1]), "auto").member(A)

    def congruence(self, K: Structure, X: Float[Tensor, "*b n d"]) -> Structure:
        return as_group(K.family, "auto").congruence(K, X)

    def square(self, K: Structure) -> Structure:
        return as_group(K.family, "auto").square(K)

    def product(self, K: Structure, M: Structure) -> Structure:
        return as_group(K.family, "auto").product(K, M)

    def gramian(self, K: Structure) -> Factor:
        return as_group(K.family, "auto").gramian(K)
