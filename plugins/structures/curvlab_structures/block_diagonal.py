"""Block-diagonal matrices: full blocks of one size, and a smaller one where the size does not divide d."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.factors import Squared, powers
from curvlab.linalg.kronecker import Factor
from curvlab.linalg.psd import nonnegative
from curvlab.protocols.backend import Backend
from curvlab.protocols.bounds import Count, check_bounds
from curvlab.protocols.structure import Family, Gram, Group, Structure
from curvlab_structures.products import product, set_product_

#: K Kᵀ of larger blocks is not formed: that costs as much as a product with ``size`` vectors, and saves as
#: much per product, so up to the usual number of rows it is never the dearer way
FORMED = 128

#: fewer vectors than this are multiplied as rows, which takes half the time
FEW = 16

#: numbers in a row of whole vectors, and how much longer than itself a row may be made to be one
VECTOR, WASTE = 16, 1.125


@dataclass(frozen=True)
class BlockDiagonalMatrix(Structure):
    """``m`` blocks of one size, then a smaller one; what there is none of is ``None``."""

    blocks: Float[Tensor, "*b m s s"] | None
    rest: Float[Tensor, "*b r r"] | None
    family: BlockDiagonal

    @cached_property
    def d(self) -> int:
        full = 0 if self.blocks is None else self.blocks.shape[-3] * self.blocks.shape[-1]
        return full + (0 if self.rest is None else self.rest.shape[-1])

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.blocks.shape[:-3] if self.blocks is not None else self.like.shape[:-2])

    def dense(self) -> Float[Tensor, "*b d d"]:
        A = self.like.new_zeros(*self.batch, self.d, self.d)
        for span, stack in self.stacks:
            _diagonal_blocks(A, span, stack.shape[-3]).copy_(stack)
        return A

    def tensors(self) -> dict[str, Tensor]:
        both = {"blocks": self.blocks, "rest": self.rest}
        return {name: t for name, t in both.items() if t is not None}

    def __matmul__(self, x: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        return self._times(x, transposed=False)

    def rmatmul(self, x: Float[Tensor, "*b k d"], out: Tensor | None = None) -> Float[Tensor, "*b k d"]:
        y = self._times(x.mT, transposed=True).mT
        return y if out is None else out.copy_(y)

    def flops(self, columns: int) -> float:
        return 2.0 * columns * sum(t.shape[-3] * t.shape[-1] ** 2 for _, t in self.stacks)

    def shift_(self, c: float) -> BlockDiagonalMatrix:
        for _, stack in self.stacks:
            stack.diagonal(dim1=-2, dim2=-1).add_(c)
        return self

    def mean_diagonal(self) -> Float[Tensor, "*b"]:
        first, *others = [t.diagonal(dim1=-2, dim2=-1).sum((-2, -1)) for _, t in self.stacks]
        return sum(others, start=first) / self.d

    def norm(self) -> Float[Tensor, "*b"]:
        norms: list[Tensor] = [torch.linalg.vector_norm(t, dim=(-3, -2, -1)) for _, t in self.stacks]
        return norms[0] if len(norms) == 1 else torch.hypot(*norms)

    @cached_property
    def stacks(self) -> list[tuple[slice, Tensor]]:
        """Views of what is stored: stacks ``[*b, m, s, s]`` of equal blocks, each with its coordinates."""
        found: list[tuple[slice, Tensor]] = []
        if self.blocks is not None:
            found.append((slice(0, self.blocks.shape[-3] * self.blocks.shape[-1]), self.blocks))
        if self.rest is not None:
            found.append((slice(self.d - self.rest.shape[-1], self.d), self.rest.unsqueeze(-3)))
        return found

    def _times(self, x: Float[Tensor, "*b d k"], *, transposed: bool) -> Float[Tensor, "*b d k"]:
        """``M x`` or ``Mᵀ x``, row-major, so that each block writes one contiguous piece; x as it lies."""
        y = x.new_empty(x.shape)
        for span, stack in self.stacks:
            sizes = stack.shape[-3:-1]
            factor = stack.mT if transposed else stack
            theirs, mine = (torch.unflatten(t[..., span, :], -2, sizes) for t in (x, y))
            if transposed and x.shape[-1] < FEW:
                mine.copy_(product(theirs.mT, stack).mT)
            else:
                set_product_(mine, factor, theirs)
        return y


@dataclass(frozen=True)
class BlockDiagonal(Family, Gram, Group):
    """Π(S) = the blocks of S on the diagonal, the last of dimension d mod size.

    With m = ⌊d / size⌋ and r = d mod size: ``m·size² + r²`` scalars, and twice as many flops for a product
    with a vector.  A Gram costs 2·n·size·d flops, an inverse about 2·size²·d; K Kᵀ is formed, for
    2·size²·d, if the blocks are small.  Source: arXiv 2312.05705, with the transposes that blocks need,
    for they lose their symmetry after two products.
    """

    size: Count = 30

    def __post_init__(self) -> None:
        check_bounds(self)

    def project(self, S: Float[Tensor, "*b d d"]) -> BlockDiagonalMatrix:
        stacks = [_diagonal_blocks(S, span, m) for span, m in self._spans(S.shape[-1])]
        return self._of([t.clone(memory_format=torch.contiguous_format) for t in stacks], S.shape[-1])

    def zeros(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> BlockDiagonalMatrix:
        sizes = [(m, (span.stop - span.start) // m) for span, m in self._spans(d)]
        return self._of([like.new_zeros(*batch, m, s, s) for m, s in sizes], d)

    def eye(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> BlockDiagonalMatrix:
        return self.zeros(d, like=like, batch=batch).shift_(1.0)

    def scalars(self, d: int) -> int:
        m, r = divmod(d, self.size)
        return m * self.size**2 + r * r

    # Gram

    def average_(
        self, M: Structure, keep: float, X: Float[Tensor, "n d"], weight: float, backend: Backend
    ) -> None:
        for span, stack in _blocks_of(M).stacks:
            x = _rows(X, span, stack.shape[-3]).to(stack.dtype)
            stack.baddbmm_(x.mT, x, beta=keep, alpha=weight)

    def inverse(self, M: Structure, shift: Tensor | float, backend: Backend) -> BlockDiagonalMatrix:
        return self._of([backend.inverse(stack, shift) for _, stack in _blocks_of(M).stacks], M.d)

    def eigh(self, M: Structure, backend: Backend) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"] | None]:
        """Eigenvalues and vectors of every block; the vectors are scattered into a dense matrix."""
        found = [backend.eigh(stack) for _, stack in _blocks_of(M).stacks]
        values = torch.cat([nonnegative(of_stack).flatten() for of_stack, _ in found])
        return values, self._of([vectors for _, vectors in found], M.d).dense()

    def power(self, M: Structure, p: float, shift: Tensor | float, backend: Backend) -> BlockDiagonalMatrix:
        """Block by block."""
        found = []
        for _, stack in _blocks_of(M).stacks:
            values, vectors = backend.eigh(stack)
            scaled = vectors * powers(nonnegative(values) + shift, p).unsqueeze(-2)
            found.append(product(scaled, vectors.mT))
        return self._of(found, M.d)

    # Group

    def member(self, A: Float[Tensor, "*b d d"]) -> BlockDiagonalMatrix:
        return self.project(A)

    def congruence(self, K: Structure, X: Float[Tensor, "*b n d"]) -> BlockDiagonalMatrix:
        found = []
        for span, B in _blocks_of(K).stacks:
            n, (m, s) = X.shape[-2], B.shape[-3:-1]
            if n > 2 * s:  # Bᵀ (xᵀx) B costs n s² + 2 s³ a block, (x B)ᵀ (x B) 2 n s²
                found.append(product(B.mT, product(_grams(X, span, m), B)))
            else:
                S = product(_rows(X, span, m), B)
                found.append(product(S.mT, S))
        return self._of(found, K.d)

    def square(self, K: Structure) -> BlockDiagonalMatrix:
        return self._of([product(B.mT, B) for _, B in _blocks_of(K).stacks], K.d)

    def product(self, K: Structure, M: Structure) -> BlockDiagonalMatrix:
        both = zip(_blocks_of(K).stacks, _blocks_of(M).stacks, strict=True)
        return self._of([product(B, C) for (_, B), (_, C) in both], K.d)

    def gramian(self, K: Structure) -> Factor:
        if min(self.size, K.d) > FORMED:
            return Squared(K)
        return self._of([product(B, B.mT) for _, B in _blocks_of(K).stacks], K.d)

    def _spans(self, d: int) -> list[tuple[slice, int]]:
        """The coordinates of the full blocks and how many they are, then those of the smaller one."""
        m, r = divmod(d, self.size)
        return [(slice(0, d - r), m)] * (m > 0) + [(slice(d - r, d), 1)] * (r > 0)

    def _of(self, stacks: list[Tensor], d: int) -> BlockDiagonalMatrix:
        """The member that stores these stacks ``[*b, m, s, s]``, one for each of ``_spans(d)``."""
        rest = stacks[-1].squeeze(-3) if d % self.size else None
        return BlockDiagonalMatrix(stacks[0] if d >= self.size else None, rest, self)


def _blocks_of(M: Structure) -> BlockDiagonalMatrix:
    assert isinstance(M, BlockDiagonalMatrix)
    return M


def _rows(X: Float[Tensor, "*b n d"], span: slice, m: int) -> Float[Tensor, "*b m n s"]:
    """The coordinates of a span, block by block: a view."""
    return torch.unflatten(X[..., span], -1, (m, -1)).transpose(-3, -2)


def _grams(X: Float[Tensor, "*b n d"], span: slice, m: int) -> Float[Tensor, "*b m s s"]:
    """XᵀX of each block of a span: a view.

    Blocks that are nearly whole vectors wide are multiplied as such: that saves a third of the time, and
    costs a copy.
    """
    x = _rows(X, span, m)
    s = x.shape[-1]
    width = -(-s // VECTOR) * VECTOR
    if s < width <= WASTE * s:
        wide = x.new_zeros(*x.shape[:-1], width)
        wide[..., :s] = x
        x = wide
    return product(x.mT, x)[..., :s, :s]


def _diagonal_blocks(A: Float[Tensor, "*b d d"], span: slice, m: int) -> Float[Tensor, "*b m s s"]:
    """The m equal blocks on the diagonal over a span: a view."""
    columns = torch.unflatten(A[..., span, span], -1, (m, -1))
    tiles = torch.unflatten(columns, -3, (m, -1))  # [*b, m, s, m, s]
    return tiles.diagonal(dim1=-4, dim2=-2).movedim(-1, -3)
