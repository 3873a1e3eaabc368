"""Bordered matrices: a few dense rows, the head, and a diagonal on the rest.

With the head's indices first they are ``[[A, B], [0, Diag D]]``; the head may lie anywhere at the two
ends.  What ``arrow`` and ``hierarchical`` share: the products of such matrices and of their
transposes with rows, with each other and with themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from curvlab_structures.products import add_product_, product


@dataclass(frozen=True)
class Head:
    """The first ``top`` and the last ``bottom`` of the indices."""

    top: int
    bottom: int

    @property
    def size(self) -> int:
        """How many indices it has."""
        return self.top + self.bottom

    def of(self, x: Shaped[Tensor, "*b d"]) -> Shaped[Tensor, "*b k"]:
        """The head's part of the last axis: a view where it is in one piece."""
        pieces = [x[..., where] for where, _ in self._pieces(x)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)

    def rest(self, x: Shaped[Tensor, "*b d"]) -> Shaped[Tensor, "*b m"]:
        """The other part: a view."""
        return x[..., self.top : x.shape[-1] - self.bottom]

    def put_(self, x: Float[Tensor, "*b d"], part: Float[Tensor, "*b k"]) -> None:
        """Write the head's part."""
        for here, there in self._pieces(x):
            x[..., here] = part[..., there]

    def cut(self, A: Float[Tensor, "*b d d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Copies: A's corner over the head, its border (the head's rows), the diagonal of the rest."""
        rows, diagonal = self.of(A.mT).mT, A.diagonal(dim1=-2, dim2=-1)
        return copied(self.of(rows)), copied(self.rest(rows)), copied(self.rest(diagonal))

    def _pieces(self, x: Tensor) -> list[tuple[slice, slice]]:
        """Where the head lies in x's last axis, and where in the head's own part; at most two pieces."""
        d = x.shape[-1]
        both = (slice(self.top), slice(self.top)), (slice(d - self.bottom, d), slice(self.top, None))
        return [piece for piece, size in zip(both, (self.top, self.bottom), strict=True) if size]


@dataclass(frozen=True)
class Bordered:
    """``[[A, B], [0, Diag D]]``: corner A, border B, diagonal D; k indices in the head, m in the rest."""

    corner: Float[Tensor, "*b k k"]
    border: Float[Tensor, "*b k m"]
    diagonal: Float[Tensor, "*b m"]
    head: Head

    def dense(self) -> Float[Tensor, "*b d d"]:
        """The matrix."""
        k, m = self.border.shape[-2:]
        A = self.border.new_zeros(*self.diagonal.shape[:-1], k + m, k + m)
        index = torch.arange(k + m, device=A.device)
        head, rest = self.head.of(index), self.head.rest(index)
        A[..., head.unsqueeze(-1), head] = self.corner
        A[..., head.unsqueeze(-1), rest] = self.border
        A[..., rest, rest] = self.diagonal
        return A

    def spread(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        """``x M``: the head's part of x spreads over all of the product."""
        y = x.new_empty(x.shape) if out is None else out
        self.head.put_(y, self.spread_in_parts(x, self.head.rest(y))[0])
        return y

    def spread_in_parts(
        self, x: Float[Tensor, "*b n d"], rest: Float[Tensor, "*b n m"] | None = None
    ) -> tuple[Float[Tensor, "*b n k"], Float[Tensor, "*b n m"]]:
        """The head's part of ``x M`` and the other, the latter in ``rest`` if given."""
        first = self.head.of(x)
        other = torch.mul(self.head.rest(x), self.diagonal.unsqueeze(-2), out=rest)
        return product(first, self.corner), add_product_(other, first, self.border)

    def collect(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        """``x Mᵀ``: all of x is collected in the head's part of the product."""
        y = x.new_empty(x.shape) if out is None else out
        self.head.put_(y, self.collect_in_parts(x, self.head.rest(y))[0])
        return y

    def collect_in_parts(
        self, x: Float[Tensor, "*b n d"], rest: Float[Tensor, "*b n m"] | None = None
    ) -> tuple[Float[Tensor, "*b n k"], Float[Tensor, "*b n m"]]:
        """The head's part of ``x Mᵀ`` and the other, the latter in ``rest`` if given."""
        first = collected(self.border, self.head.rest(x))
        add_product_(first, self.corner, self.head.of(x).mT)
        return first.mT, torch.mul(self.head.rest(x), self.diagonal.unsqueeze(-2), out=rest)

    def product(self, other: Bordered) -> Bordered:
        """``M N``."""
        border = self.border * other.diagonal.unsqueeze(-2)
        add_product_(border, self.corner, other.border)
        return Bordered(product(self.corner, other.corner), border, self.diagonal * other.diagonal, self.head)

    def outer(self) -> Bordered:
        """The upper half ``[[P, F], [0, Diag δ]]`` of ``M Mᵀ``."""
        A, B, D = self.corner, self.border, self.diagonal
        corner = add_product_(product(A, A.mT), B, B.mT)
        return Bordered(corner, B * D.unsqueeze(-2), D.square(), self.head)

    def inner(self) -> Bordered:
        """The entries of ``Mᵀ M`` where M has some; the rest of it is full."""
        A, B, D = self.corner, self.border, self.diagonal
        diagonal = B.square().sum(-2).addcmul_(D, D)
        return Bordered(product(A.mT, A), product(A.mT, B), diagonal, self.head)

    def thin(self) -> Thin:
        """``Mᵀ M``, all of it."""
        batch, (k, m) = self.diagonal.shape[:-1], self.border.shape[-2:]
        rows, weights = self.border.new_empty(*batch, k, k + m), self.border.new_zeros(*batch, k + m)
        self.head.put_(rows, self.corner)
        self.head.rest(rows).copy_(self.border)
        torch.square(self.diagonal, out=self.head.rest(weights))
        return Thin(rows, weights)


@dataclass(frozen=True)
class Thin:
    """The symmetric matrix ``Diag w + ZᵀZ`` of few rows Z: a ``Factor``."""

    rows: Float[Tensor, "*b k d"]  #: Z
    weights: Float[Tensor, "*b d"]  #: w

    def __matmul__(self, x: Float[Tensor, "*b d n"]) -> Float[Tensor, "*b d n"]:
        y = x.new_empty(x.shape)
        self.rmatmul(x.mT, y.mT)
        return y

    def rmatmul(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        y = torch.mul(x, self.weights.unsqueeze(-2), out=out)
        return add_product_(y, collected(self.rows, x).mT, self.rows)

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product with ``columns`` vectors."""
        k, d = self.rows.shape[-2:]
        return (4.0 * k + 1.0) * d * columns


@dataclass(frozen=True)
class Arrowhead:
    """The symmetric matrix ``[[P, F], [Fᵀ, Diag δ]]``, given by its upper half: a ``Factor``."""

    half: Bordered

    def __matmul__(self, x: Float[Tensor, "*b d n"]) -> Float[Tensor, "*b d n"]:
        y = x.new_empty(x.shape)
        self.rmatmul(x.mT, y.mT)
        return y

    def rmatmul(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        half, y = self.half, x.new_empty(x.shape) if out is None else out
        first, rest, onto = half.head.of(x), half.head.rest(x), half.head.rest(y)
        torch.mul(rest, half.diagonal.unsqueeze(-2), out=onto)
        add_product_(onto, first, half.border)
        half.head.put_(y, add_product_(collected(half.border, rest), half.corner, first.mT).mT)
        return y

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product with ``columns`` vectors."""
        k, m = self.half.border.shape[-2:]
        return (2.0 * k * k + 4.0 * k * m + m) * columns


def gram_entries(first: Float[Tensor, "*b n k"], rest: Float[Tensor, "*b n m"], head: Head) -> Bordered:
    """The entries of ``SᵀS`` where a bordered matrix has some, S given in parts; no others are computed."""
    return Bordered(product(first.mT, first), product(first.mT, rest), rest.square().sum(-2), head)


def collected(rows: Float[Tensor, "*b k m"], x: Float[Tensor, "*b n m"]) -> Float[Tensor, "*b k n"]:
    """``rows xᵀ``: this way round it takes up to 40 % less time than ``x rowsᵀ``, k being small."""
    return product(rows, x.mT)


def copied(t: Tensor) -> Tensor:
    """A row-major copy, in memory of its own."""
    return t.clone(memory_format=torch.contiguous_format)
