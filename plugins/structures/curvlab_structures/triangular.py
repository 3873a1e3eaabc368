"""Lower and upper triangular matrices, each number of the triangle stored once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.protocols.structure import Family, Group, Structure
from curvlab_structures.products import add_product_, set_product_

#: columns that are multiplied at once: narrower panels waste less on the zeros of their corner, wider ones
#: fill the cache better
WIDTH = 128
#: a matrix product is slower by up to a third where its columns are no multiple of this
VECTOR = 16


@dataclass(frozen=True)
class Panel:
    """Neighboring columns of a triangular matrix, on the rows where they are not zero."""

    columns: slice
    rows: slice
    view: Float[Tensor, "*b r w"]  #: where they are stored; beyond the triangle lie other columns' numbers
    below: bool

    @property
    def matrix(self) -> Float[Tensor, "*b r w"]:
        """A copy with zeros beyond the triangle."""
        if self.view.stride(-1) == 1:
            return self.cut_(self.view.clone(memory_format=torch.contiguous_format))
        return self.cut_(self.view.mT.clone(memory_format=torch.contiguous_format).mT)

    def cut_(self, A: Float[Tensor, "*b r w"]) -> Float[Tensor, "*b r w"]:
        """A with zeros beyond the triangle, which only a corner of it crosses."""
        w = A.shape[-1]
        if self.below:
            A[..., :w, :].tril_()
        else:
            A[..., -w:, :].triu_()
        return A

    def holds(self, other: Panel) -> bool:
        """Whether the other's columns are rows of this one."""
        return bool(self.rows.start <= other.columns.start and other.columns.stop <= self.rows.stop)

    def within(self, span: slice) -> slice:
        """A span of the matrix's rows as rows of this panel."""
        return slice(span.start - self.rows.start, span.stop - self.rows.start)


@dataclass(frozen=True)
class TriangularMatrix(Structure):
    """A triangle in a rectangle that it fills (rectangular full packed: arXiv 0901.1696).

    With c = ⌈d/2⌉ and e = d − c, a lower triangle is ``[[T₁, 0], [S, T₂]]``: T₁ and S are c columns of d
    numbers, stored as they are, with a hole above the diagonal that T₂ᵀ fits into.  For even d one more row
    on top makes room for both diagonals.  An upper triangle is stored the same way, turned by 180°.
    """

    packed: Float[Tensor, "*b p c"]
    family: Triangular

    @property
    def d(self) -> int:
        p, c = self.packed.shape[-2:]
        return min(p, 2 * c)

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.packed.shape[:-2])

    def dense(self) -> Float[Tensor, "*b d d"]:
        A = self.packed.new_zeros(*self.batch, self.d, self.d)
        for panel in self.panels():
            A[..., panel.rows, panel.columns] = panel.matrix
        return A

    def tensors(self) -> dict[str, Tensor]:
        return {"packed": self.packed}

    def __matmul__(self, x: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        first, *others = self.panels()  # the first has all rows
        y = first.matrix @ x[..., first.columns, :]
        for panel in others:
            add_product_(y[..., panel.rows, :], panel.matrix, x[..., panel.columns, :])
        return y

    def rmatmul(self, x: Float[Tensor, "*b k d"], out: Tensor | None = None) -> Float[Tensor, "*b k d"]:
        y = x.new_empty(x.shape) if out is None else out
        for panel in self.panels():
            set_product_(y[..., panel.columns], x[..., panel.rows], panel.matrix)
        return y

    def flops(self, columns: int) -> float:
        return 2.0 * columns * sum(p.view.shape[-2] * p.view.shape[-1] for p in self.panels())

    def shift_(self, c: float) -> TriangularMatrix:
        for diagonal in self._diagonals():
            diagonal.add_(c)
        return self

    def mean_diagonal(self) -> Float[Tensor, "*b"]:
        return torch.stack([t.sum(-1) for t in self._diagonals()]).sum(0) / self.d

    def norm(self) -> Float[Tensor, "*b"]:
        norm: Tensor = torch.linalg.vector_norm(self.packed, dim=(-2, -1))
        return norm

    def panels(self) -> list[Panel]:
        """The columns in panels, the one with all rows first."""
        d, below = self.d, self.family.below
        c, (own, turned) = self.packed.shape[-1], self._triangles()
        e = d - c
        found = []
        for a, b in _steps(c):  # the half that is stored as it is
            if below:
                found.append(Panel(slice(a, b), slice(a, d), own[..., a:, a:b], below))
            else:
                found.append(Panel(slice(e + a, e + b), slice(0, e + b), own[..., : e + b, a:b], below))
        for a, b in _steps(e):  # the half that is stored transposed
            if below:
                found.append(Panel(slice(c + a, c + b), slice(c + a, d), turned[..., a:b, a:].mT, below))
            else:
                found.append(Panel(slice(a, b), slice(0, b), turned[..., a:b, :b].mT, below))
        return sorted(found, key=lambda p: p.rows.start - p.rows.stop)

    def halve_diagonal_(self) -> TriangularMatrix:
        """As the projection of a symmetric matrix wants it, whose other entries count twice."""
        for diagonal in self._diagonals():
            diagonal.mul_(0.5)
        return self

    def _triangles(self) -> tuple[Float[Tensor, "*b d c"], Float[Tensor, "*b e e"]]:
        """Views: where the half that is stored as it is lies, and where the transposed one."""
        (p, c), d = self.packed.shape[-2:], self.d
        e = d - c
        if self.family.below:
            return self.packed[..., p - d :, :], self.packed[..., :e, c - e :]
        return self.packed[..., :d, :], self.packed[..., p - e :, :e]

    def _diagonals(self) -> tuple[Tensor, Tensor]:
        own, turned = self._triangles()
        offset = 0 if self.family.below else -turned.shape[-1]
        return own.diagonal(offset, dim1=-2, dim2=-1), turned.diagonal(dim1=-2, dim2=-1)


class Triangular(Family, Group):
    """What lower and upper triangular families share."""

    below: ClassVar[bool]  #: whether entries lie below the diagonal

    def project(self, S: Float[Tensor, "*b d d"]) -> TriangularMatrix:
        doubled = self._filled(S, S.shape[-1], lambda p: S[..., p.rows, p.columns].clone(), 2.0)
        return doubled.halve_diagonal_()

    def zeros(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> TriangularMatrix:
        return TriangularMatrix(like.new_zeros(*batch, d + 1 - d % 2, (d + 1) // 2), self)

    def eye(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> TriangularMatrix:
        return self.zeros(d, like=like, batch=batch).shift_(1.0)

    def scalars(self, d: int) -> int:
        return d * (d + 1) // 2

    def member(self, A: Float[Tensor, "*b d d"]) -> TriangularMatrix:
        return self._filled(A, A.shape[-1], lambda p: A[..., p.rows, p.columns].clone())

    def congruence(self, K: Structure, X: Float[Tensor, "*b n d"]) -> TriangularMatrix:
        S = K.rmatmul(X)

        def gram(p: Panel) -> Tensor:
            return S[..., p.rows].mT @ S[..., p.columns]

        return self._filled(S, K.d, gram, 2.0).halve_diagonal_()

    def square(self, K: Structure) -> TriangularMatrix:
        found, like = _matrices(K), K.like

        def gram(p: Panel) -> Tensor:
            A = found[p.columns.start][1]
            G = torch.empty_like(A)
            for q, B in found.values():
                if p.holds(q):
                    set_product_(G[..., p.within(q.columns), :], B.mT, A[..., p.within(q.rows), :])
            return G

        return self._filled(like, K.d, gram, 2.0).halve_diagonal_()

    def product(self, K: Structure, M: Structure) -> TriangularMatrix:
        left, right, like = _matrices(K), _matrices(M), K.like

        def product(p: Panel) -> Tensor:
            A = right[p.columns.start][1]
            AB = left[p.columns.start][1] @ A[..., p.within(p.columns), :]
            for q, B in left.values():
                if p.holds(q) and q.columns != p.columns:
                    add_product_(AB[..., p.within(q.rows), :], B, A[..., p.within(q.columns), :])
            return AB

        return self._filled(like, K.d, product)

    def _filled(
        self, like: Float[Tensor, "*b k l"], d: int, make: Callable[[Panel], Tensor], alpha: float = 1.0
    ) -> TriangularMatrix:
        """``alpha`` times what ``make`` computes for each panel's rows and columns, cut to the triangle."""
        M = self.zeros(d, like=like, batch=like.shape[:-2])
        for panel in M.panels():
            panel.view.add_(panel.cut_(make(panel)), alpha=alpha)  # beside what other panels have put there
        return M


@dataclass(frozen=True)
class LowerTriangular(Triangular):
    """Π(S) = the lower triangle of S, twice what lies below the diagonal.

    ``d (d + 1)/2`` scalars.  A product with a vector costs d² flops and half a panel's width per column
    more, of K and m together d³/3, a congruence 2·n·d²; of a transient nothing is larger than a panel of
    128 columns.  Source: arXiv 2312.05705.
    """

    below = True


@dataclass(frozen=True)
class UpperTriangular(Triangular):
    """Π(S) = the upper triangle of S, twice what lies above the diagonal; else as ``lower-triangular``."""

    below = False


def _matrices(K: Structure) -> dict[int, tuple[Panel, Tensor]]:
    """The panels and their matrices by the first column."""
    assert isinstance(K, TriangularMatrix)
    return {p.columns.start: (p, p.matrix) for p in K.panels()}


def _steps(c: int) -> Iterator[tuple[int, int]]:
    """``range(c)`` in pieces of about ``WIDTH``, few and of whole vectors."""
    step = VECTOR * max(1, math.ceil(c / (VECTOR * max(1, round(c / WIDTH)))))
    yield from ((a, min(a + step, c)) for a in range(0, c, step))
