"""Structures whose members are bordered matrices, or the transposes of such."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.kronecker import Factor
from curvlab.protocols.structure import Family, Group, Structure
from curvlab_structures.bordered import Arrowhead, Bordered, Head, gram_entries


@dataclass(frozen=True)
class BorderedMatrix(Structure):
    """The bordered matrix ``M = [[A, B], [0, Diag D]]``, or ``Mᵀ`` where the family's border is columns.

    A subclass stores A; every stored scalar is one entry of the matrix.
    """

    border: Float[Tensor, "*b k m"]  #: B
    diagonal: Float[Tensor, "*b m"]  #: D
    family: BorderedFamily

    @abstractmethod
    def form(self) -> Bordered:
        """M."""

    @abstractmethod
    def squares(self) -> tuple[Float[Tensor, "*b _ _"], ...]:
        """The full blocks on the diagonal of A, as they are stored."""

    @property
    def d(self) -> int:
        k, m = self.border.shape[-2:]
        return k + m

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.diagonal.shape[:-1])

    def dense(self) -> Float[Tensor, "*b d d"]:
        M = self.form().dense()
        return M.mT if self.family.columns else M

    def tensors(self) -> dict[str, Tensor]:
        named = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: t for name, t in named.items() if isinstance(t, Tensor)}

    def __matmul__(self, x: Float[Tensor, "*b d n"]) -> Float[Tensor, "*b d n"]:
        M, y = self.form(), x.new_empty(x.shape)
        rows = M.spread if self.family.columns else M.collect
        rows(x.mT, y.mT)
        return y

    def rmatmul(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        M = self.form()
        return M.collect(x, out) if self.family.columns else M.spread(x, out)

    def flops(self, columns: int) -> float:
        k, m = self.border.shape[-2:]
        return (2.0 * k * (k + m) + m) * columns

    def shift_(self, c: float) -> BorderedMatrix:
        for diagonal in self._diagonals():
            diagonal.add_(c)
        return self

    def mean_diagonal(self) -> Float[Tensor, "*b"]:
        first, *others = [t.sum(-1) for t in self._diagonals()]
        return sum(others, start=first) / self.d

    def norm(self) -> Float[Tensor, "*b"]:
        # one norm of a copy: of so few numbers, norms of each tensor and their norm take twice as long
        entries = torch.cat([t.flatten(len(self.batch)) for t in self.tensors().values()], -1)
        norm: Tensor = torch.linalg.vector_norm(entries, dim=-1)
        return norm

    def _diagonals(self) -> list[Tensor]:
        """The diagonal of the matrix in pieces: views."""
        return [self.diagonal, *(A.diagonal(dim1=-2, dim2=-1) for A in self.squares())]


@dataclass(frozen=True)
class BorderedFamily(Family, Group):
    """A pattern of bordered matrices; a subclass says where the head is and what A is made of."""

    @property
    def columns(self) -> bool:
        """Whether members are the transposes of bordered matrices: the border is columns, not rows."""
        return False

    @abstractmethod
    def head(self, d: int) -> Head:
        """The indices of the dense rows (or columns) at dimension d."""

    @abstractmethod
    def fold(self, M: Bordered, weight: float = 1.0) -> BorderedMatrix:
        """The member equal to M, ``weight`` times where an entry of A has none opposite.

        It may keep M's tensors.
        """

    def project(self, S: Float[Tensor, "*b d d"]) -> BorderedMatrix:
        head = self.head(S.shape[-1])
        return self._nearest(Bordered(*head.cut(S), head))

    def zeros(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> BorderedMatrix:
        head = self.head(d)
        k, m = head.size, d - head.size
        shapes = ((k, k), (k, m), (m,))
        corner, border, diagonal = (like.new_zeros(*batch, *shape) for shape in shapes)
        return self.fold(Bordered(corner, border, diagonal, head))

    def eye(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> BorderedMatrix:
        return self.zeros(d, like=like, batch=batch).shift_(1.0)

    def scalars(self, d: int) -> int:
        k = self.head(d).size
        return k * k + k * (d - k) + (d - k)

    def member(self, A: Float[Tensor, "*b d d"]) -> BorderedMatrix:
        head = self.head(A.shape[-1])
        return self.fold(Bordered(*head.cut(A.mT if self.columns else A), head))

    def congruence(self, K: Structure, X: Float[Tensor, "*b n d"]) -> BorderedMatrix:
        M = _form(K)
        parts = M.collect_in_parts(X) if self.columns else M.spread_in_parts(X)
        return self._nearest(gram_entries(*parts, M.head))

    def square(self, K: Structure) -> BorderedMatrix:
        M = _form(K)
        return self._nearest(M.outer() if self.columns else M.inner())

    def product(self, K: Structure, M: Structure) -> BorderedMatrix:
        first, second = (_form(M), _form(K)) if self.columns else (_form(K), _form(M))
        return self.fold(first.product(second))

    def gramian(self, K: Structure) -> Factor:
        return _form(K).thin() if self.columns else Arrowhead(_form(K).outer())

    def _nearest(self, S: Bordered) -> BorderedMatrix:
        """The projection of a symmetric matrix with these entries: those with none opposite count twice.

        S's border is changed.
        """
        S.border.mul_(2.0)
        return self.fold(S, weight=2.0)


def _form(K: Structure) -> Bordered:
    assert isinstance(K, BorderedMatrix)
    return K.form()
