"""One-hot rows by the place of their 1: what a lookup table reads, never built.

Rows ``[*r, d]`` stand as indices ``[*r]``.  Their Gram matrix is diagonal, a count of each index, whatever
the data: a diagonal factor of them is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Lookups:
    """Rows ``[*r, d]`` that are 1 at ``index [*r]`` and 0 elsewhere, in the arithmetic of ``dtype``."""

    index: Int[Tensor, "*r"]
    d: int
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """That of the rows they stand for."""
        return torch.Size((*self.index.shape, self.d))

    @property
    def device(self) -> torch.device:
        """Where the indices are."""
        return self.index.device

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, some: slice) -> Lookups:
        return Lookups(self.index[some], self.d, self.dtype)

    def dense(self) -> Float[Tensor, "*r d"]:
        """The rows themselves; ``d`` scalars each."""
        rows = torch.zeros(self.shape, dtype=self.dtype, device=self.device)
        return rows.scatter_(-1, self.index.unsqueeze(-1), 1.0)

    def to(self, dtype: torch.dtype) -> Lookups:
        """The same rows in another dtype."""
        return Lookups(self.index, self.d, dtype)

    def counts(self) -> Float[Tensor, "*b d"]:
        """Diagonal of XᵀX of rows ``[*b, n, d]``: how often each index stands there."""
        *b, _ = self.index.shape
        found = torch.zeros((*b, self.d), dtype=self.dtype, device=self.device)
        return found.scatter_add_(-1, self.index, found.new_ones(()).expand(self.index.shape))

    def scattered(self, g: Float[Tensor, "*r o"]) -> Float[Tensor, "d o"]:
        """``Xᵀ g``: the rows of g added up by index."""
        found = g.new_zeros(self.d, g.shape[-1])
        return found.index_add_(0, self.index.reshape(-1), g.reshape(-1, g.shape[-1]))


#: dense rows ``[*r, d]``, or lookups
AnyRows = Tensor | Lookups


def dense_rows(rows: AnyRows) -> Float[Tensor, "*r d"]:
    """Rows as a tensor."""
    return rows.dense() if isinstance(rows, Lookups) else rows


def rearranged(change: Callable[[Sequence[Tensor]], Tensor], parts: Sequence[AnyRows]) -> AnyRows:
    """Rows ``[*r, d]`` of several parts as one, by a change of the axes before the last.

    ``change`` sees tensors with a last axis: d entries of dense rows, one of lookups.
    """
    first = parts[0]
    if not isinstance(first, Lookups):
        return change([p for p in parts if isinstance(p, Tensor)])
    found = change([p.index.unsqueeze(-1) for p in parts if isinstance(p, Lookups)])
    return Lookups(found.squeeze(-1), first.d, first.dtype)


def flattened(rows: AnyRows, start: int, stop: int) -> AnyRows:
    """Rows with the axes from ``start`` to ``stop`` as one; the last axis stays."""
    return rearranged(lambda parts: parts[0].flatten(start, stop), [rows])


def squares(rows: AnyRows) -> Float[Tensor, "*b d"]:
    """Diagonal of XᵀX, for rows ``[*b, n, d]``."""
    return rows.counts() if isinstance(rows, Lookups) else rows.square().sum(-2)
