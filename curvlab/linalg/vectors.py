"""Vectors over named blocks, held in one flat buffer.

A ``BlockVector`` is what a gradient, a direction or a momentum is: one tensor per block, by name.
The tensors are views of a single buffer, so that conjugate gradients, L-BFGS, momentum and updates
are one kernel each, whatever the number of blocks.  A block may also be *held as an outer product*
(``Outer``) until the matrix is read.  The gradient of a linear layer is ``Gᵀ A`` with as many rows as
the batch, and a Kronecker preconditioner is cheaper on the factors than on the product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.accumulation import accumulate_
from curvlab.linalg.buffer import Buffer, Recycled
from curvlab.linalg.columns import Columns, single
from curvlab.linalg.outer import Outer


class BlockLayout:
    """Names, shapes and offsets of the blocks of a flat buffer; compared by content and order.

    ``columns`` says which columns of a block are which parameter; one parameter each, unless given.  A layout
    keeps a few buffers that were handed back by ``recycle`` and reuses them, until ``release``.
    """

    __slots__ = ("_recycled", "columns", "names", "offsets", "one_hot", "shapes", "size", "sizes")

    def __init__(
        self,
        shapes: Mapping[str, torch.Size | tuple[int, ...]],
        one_hot: Iterable[str] = (),
        columns: Mapping[str, tuple[Columns, ...]] | None = None,
    ) -> None:
        self.names: tuple[str, ...] = tuple(shapes)
        self.shapes: dict[str, torch.Size] = {n: torch.Size(s) for n, s in shapes.items()}
        #: blocks whose columns are the entries of a lookup table, whose inputs are one-hot rows
        self.one_hot = frozenset(one_hot)
        self.columns = {n: single(n, s) for n, s in self.shapes.items()} if columns is None else columns
        self.offsets: dict[str, tuple[int, int]] = {}
        start = 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            self.offsets[name] = (start, stop)
            start = stop
        self.size: int = start
        self.sizes: list[int] = [stop - start for start, stop in self.offsets.values()]
        self._recycled = Recycled()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, BlockLayout) and self.names == other.names and self.shapes == other.shapes

    def __hash__(self) -> int:
        return hash(tuple(self.shapes.items()))

    def zeros(self, *, like: Tensor) -> BlockVector:
        """A zero vector of ``like``'s dtype and device."""
        return BlockVector(self, like.new_zeros(self.size))

    def empty(self, *, like: Tensor) -> BlockVector:
        """An uninitialized vector of ``like``'s dtype and device, from a recycled buffer if there is one."""
        found = self._recycled.take(like)
        return BlockVector(self, like.new_empty(self.size)) if found is None else BlockVector(self, found)

    def recycle(self, vector: BlockVector) -> None:
        """Hand back a vector that is not read any more; a borrowed one, or an alias, is left alone."""
        if not vector.borrowed:
            self._recycled.put(vector.buffer)

    def release(self) -> None:
        """Let go of the buffers that were handed back: between steps nothing is held."""
        self._recycled.clear()

    def restrict(self, names: tuple[str, ...]) -> BlockLayout:
        """The layout of some of the blocks, in the order given."""
        columns = {n: self.columns[n] for n in names}
        return BlockLayout({n: self.shapes[n] for n in names}, self.one_hot.intersection(names), columns)


class BlockVector:
    """One tensor per named block, as views of one flat buffer.

    A vector that is a buffer of a state, or of the evidence, is returned ``borrow``ed:
    code that changes it takes ``owned`` first.

    ``outers`` holds the blocks that are still factored: their part of the buffer is filled on the
    first read of ``flat`` (or of that block) and the factors are dropped.  Names ending in ``_``
    change the vector itself; everything else returns a new one.  Mixing layouts raises ``ValueError``.
    """

    __slots__ = ("_flat", "borrowed", "buffer", "layout", "outers")

    def __init__(
        self,
        layout: BlockLayout,
        flat: Float[Tensor, " D"] | Buffer,
        outers: dict[str, Outer] | None = None,
    ) -> None:
        #: the flat tensor, shared with aliases, and the views of it that were made
        self.buffer = flat if isinstance(flat, Buffer) else Buffer(flat)
        self._flat = self.buffer.flat
        if self._flat.shape != (layout.size,):
            raise ValueError(
                f"the buffer has shape {tuple(self._flat.shape)}; its layout needs ({layout.size},)"
            )
        self.layout = layout
        self.outers: dict[str, Outer] = outers or {}
        self.borrowed = False

    # reading

    @property
    def flat(self) -> Float[Tensor, " D"]:
        """The whole buffer; multiplies out whatever is still factored."""
        for name in tuple(self.outers):
            self._multiply_out(name)
        return self._flat

    def __getitem__(self, name: str) -> Tensor:
        if name in self.outers:
            self._multiply_out(name)
        return self._view(name)

    def parts(
        self, what: Hashable, cut: Callable[[BlockVector], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The views that ``cut`` makes of it; kept with the buffer, as ``what``."""
        for name in tuple(self.outers):
            self._multiply_out(name)
        parts = self.buffer.parts
        if what not in parts:
            parts[what] = cut(self)
        return parts[what]

    def factored(self, name: str) -> Outer | Tensor:
        """Block ``name`` as it is held: the factors if the matrix has not been read yet."""
        return self.outers.get(name) or self._view(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.layout.names)

    def __len__(self) -> int:
        return len(self.layout.names)

    def __contains__(self, name: object) -> bool:
        return name in self.layout.shapes

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Name and view of each block, in layout order."""
        for name in self.layout.names:
            yield name, self[name]

    @property
    def dtype(self) -> torch.dtype:
        """One dtype for all blocks."""
        return self._flat.dtype

    @property
    def device(self) -> torch.device:
        """One device for all blocks."""
        return self._flat.device

    def __repr__(self) -> str:
        return f"BlockVector({dict(self.layout.shapes)}, dtype={self.dtype})"

    # ownership

    def borrow(self) -> BlockVector:
        """The same vector, marked as borrowed."""
        other = self._alias()
        other.outers, other.borrowed = self.outers, True
        return other

    def owned(self) -> BlockVector:
        """A vector that may be changed: itself, or a copy if it is borrowed."""
        return self.clone() if self.borrowed else self

    # arithmetic: pure

    def __add__(self, other: BlockVector) -> BlockVector:
        return self.plus(other)

    def __sub__(self, other: BlockVector) -> BlockVector:
        return self.plus(other, -1.0)

    def __mul__(self, factor: float | Tensor) -> BlockVector:
        """``factor · self``; factored blocks stay factored."""
        out = self.empty_like()
        if not self.outers:
            torch.mul(self._flat, factor, out=out._flat)
            return out
        for name in self.layout.names:
            held = self.factored(name)
            if isinstance(held, Outer):
                out.outers[name] = held.scaled(factor)
            else:
                torch.mul(held, factor, out=out._view(name))
        return out

    __rmul__ = __mul__

    def __neg__(self) -> BlockVector:
        return self * -1.0

    def plus(self, other: BlockVector, factor: float = 1.0) -> BlockVector:
        """``self + factor · other`` in one pass."""
        out = self.empty_like()
        torch.add(self.flat, self._other(other), alpha=factor, out=out._flat)
        return out

    def dot(self, other: BlockVector) -> Float[Tensor, ""]:
        """Euclidean inner product, a tensor (no host sync).

        Blocks that both hold factored: ``⟨L₁ᵀR₁, L₂ᵀR₂⟩ = ⟨L₁L₂ᵀ, R₁R₂ᵀ⟩`` where that is cheaper.
        """
        if not (self.outers and other.outers):
            return torch.dot(self.flat, self._other(other))
        self._check(other)
        parts = []
        for name in self.layout.names:
            a, b = self.outers.get(name), other.outers.get(name)
            if a is not None and b is not None and a.cheap(b):
                parts.append(a.dot(b))
            else:
                parts.append(torch.dot(self[name].reshape(-1), other[name].reshape(-1)))
        return torch.stack(parts).sum()

    def norm(self) -> Float[Tensor, ""]:
        """Euclidean norm, a tensor (no host sync)."""
        norm: Tensor = torch.linalg.vector_norm(self.flat)
        return norm

    def zeros_like(self) -> BlockVector:
        """A zero vector of this layout, dtype and device."""
        return self._new(torch.zeros_like(self._flat))

    def empty_like(self) -> BlockVector:
        """An uninitialized vector of this layout, dtype and device."""
        return self.layout.empty(like=self._flat)

    def clone(self) -> BlockVector:
        """A copy with a buffer of its own."""
        return self.empty_like().copy_(self)

    def to(self, dtype: torch.dtype) -> BlockVector:
        """This vector in another dtype (itself if it already is); factored blocks stay factored."""
        if dtype == self.dtype:
            return self
        if not self.outers:
            return self._new(self._flat.to(dtype))
        other = self.layout.empty(like=self._flat.new_empty(0, dtype=dtype))
        for name in self.layout.names:
            if name in self.outers:
                other.outers[name] = self.outers[name].to(dtype)
            else:
                other._view(name).copy_(self._view(name))
        return other

    def restrict(self, layout: BlockLayout) -> BlockVector:
        """The blocks of ``layout`` alone; a copy, except when nothing is left out."""
        if layout == self.layout:
            return self
        part = layout.empty(like=self._flat)
        for name in layout.names:
            if name in self.outers:
                part.outers[name] = self.outers[name]
            else:
                part._view(name).copy_(self._view(name))
        return part

    def padded(self, whole: BlockLayout) -> BlockVector:
        """A vector of the blocks of ``whole`` that is zero in those this one lacks."""
        if whole == self.layout:
            return self
        found = whole.zeros(like=self.flat)
        for name, block in self.items():
            found[name].copy_(block)
        return found

    # arithmetic: in place

    def copy_(self, other: BlockVector) -> BlockVector:
        """self ← other."""
        self.outers.clear()
        self._flat.copy_(self._other(other))
        return self

    def add_(self, other: BlockVector, factor: float = 1.0) -> BlockVector:
        """self ← self + factor · other."""
        return self.combine_(1.0, other, factor)

    def combine_(self, a: float, other: BlockVector, b: float = 1.0) -> BlockVector:
        """self ← a · self + b · other; a factored block of ``other`` is multiplied in, never formed."""
        flat = self.flat
        if not other.outers:
            if a == 1.0:
                flat.add_(self._other(other), alpha=b)
            elif b == 1.0:
                torch.add(self._other(other), flat, alpha=a, out=flat)
            else:
                flat.mul_(a).add_(self._other(other), alpha=b)
            return self
        self._check(other)
        for name in self.layout.names:
            mine, theirs = self._view(name), other.factored(name)
            if isinstance(theirs, Outer):
                accumulate_(mine, a, theirs.left, theirs.right, b)
            else:
                mine.mul_(a).add_(theirs, alpha=b)
        return self

    def size(self) -> float:
        """A bound of ``‖self‖²``, equal to it where no block is factored.  A host sync.

        Not finite if an entry is not, or if a square overflows.
        """
        if not self.outers:
            return float(torch.dot(self._flat, self._flat))
        bound = 0.0
        for name in self.layout.names:
            held = self.factored(name)
            if isinstance(held, Outer):
                bound += float(held.bound().square_())
            else:
                flat = held.reshape(-1)
                bound += float(torch.dot(flat, flat))
        return bound

    def is_finite(self) -> bool:
        """No NaN, no infinity (of factored blocks: in the factors).  A host sync."""
        held = [t for o in self.outers.values() for t in (o.left, o.right)]
        if len(self.outers) < len(self.layout.names):
            held.append(
                self.flat
                if not self.outers
                else torch.cat([self._view(n).reshape(-1) for n in self.layout.names if n not in self.outers])
            )
        # a finite sum proves finite terms in one pass; only a sum that is not is looked into
        return all(math.isfinite(float(t.sum())) or bool(torch.isfinite(t).all()) for t in held)

    def scale_(self, factor: float | Tensor) -> BlockVector:
        """self ← factor · self; factored blocks stay factored."""
        if isinstance(factor, Tensor) and factor.device.type == "cpu":
            factor = float(factor)
        if isinstance(factor, float) and factor == 1.0:  # as a bound mostly says
            return self
        if not self.outers:
            self._flat.mul_(factor)
            return self
        for name in self.layout.names:
            held = self.factored(name)
            if isinstance(held, Outer):
                self.outers[name] = held.scaled(factor)
            else:
                held.mul_(factor)
        return self

    def zero_(self) -> BlockVector:
        """self ← 0."""
        self.outers.clear()
        self._flat.zero_()
        return self

    # helpers

    def _new(self, flat: Tensor) -> BlockVector:
        return BlockVector(self.layout, flat)

    def _other(self, other: BlockVector) -> Tensor:
        self._check(other)
        return other.flat

    def _check(self, other: BlockVector) -> None:
        if other.layout != self.layout:
            mine, theirs = set(self.layout.shapes.items()), set(other.layout.shapes.items())
            what = f"{sorted(mine ^ theirs)} do not match" if mine ^ theirs else "they have another order"
            raise ValueError(f"the vectors have different blocks: {what}")

    def _alias(self) -> BlockVector:
        """Another vector in the same buffer."""
        return BlockVector(self.layout, self.buffer)

    def _view(self, name: str) -> Tensor:
        return self.buffer.view(name, self.layout.shapes, self.layout.sizes)

    def _multiply_out(self, name: str) -> None:
        self.outers.pop(name).dense(out=self._view(name))
