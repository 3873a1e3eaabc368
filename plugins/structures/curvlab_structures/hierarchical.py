"""Hierarchical matrices: dense blocks at both ends, whose rows are dense, and a diagonal between."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from curvlab.protocols.bounds import Count, check_bounds
from curvlab_structures.bordered import Bordered, Head, copied
from curvlab_structures.bordered_structure import BorderedFamily, BorderedMatrix


@dataclass(frozen=True)
class HierarchicalMatrix(BorderedMatrix):
    """``[[A, B₁, B₂], [0, Diag D, 0], [0, E₁, E₂]]``.

    It is bordered, with the indices of A and E₂ as the head: the corner is ``[[A, B₂], [0, E₂]]``, the border
    ``[[B₁], [E₁]]``.
    """

    top: Float[Tensor, "*b t t"]  #: A
    across: Float[Tensor, "*b t l"]  #: B₂
    bottom: Float[Tensor, "*b l l"]  #: E₂
    assembled: Bordered | None = None  #: ``form()``, of one that is laid out

    def form(self) -> Bordered:
        if self.assembled is not None:
            return self.assembled
        head = self.family.head(self.d)
        rows = torch.cat((self.top, self.across), -1), pad(self.bottom, (head.top, 0))
        return Bordered(torch.cat(rows, -2), self.border, self.diagonal, head)

    def laid_out(self) -> HierarchicalMatrix:
        return replace(self, assembled=self.form())

    def part(self, k: int) -> HierarchicalMatrix:
        tensors = {name: t[k] for name, t in self.tensors().items()}
        return replace(self, **tensors, assembled=None)  # type: ignore[arg-type]

    def squares(self) -> tuple[Float[Tensor, "*b _ _"], ...]:
        return self.top, self.bottom


@dataclass(frozen=True)
class Hierarchical(BorderedFamily):
    """Π(S): S's blocks over the first k₁ and over the last k₂ indices, its diagonal between, twice the rest.

    The pattern is ``[[A, B₁, B₂], [0, Diag D, 0], [0, E₁, E₂]]`` with k₁ = ``top`` and k₂ = ``bottom``; if
    d ≤ k₁ it is A alone, if d ≤ k₁ + k₂ there is no middle.  With m = d − k₁ − k₂:
    ``k₁² + k₁·(d − k₁) + (k₂ + 1)·m + k₂²`` scalars.  With k = k₁ + k₂, a product with a vector costs about
    (2·k + 1)·d flops, one with K Kᵀ (4·k + 1)·d, a congruence of n rows 4·n·k·d.  Source: arXiv 2312.05705,
    with the transposes that A and E₂ need once they have lost their symmetry.
    """

    top: Count = 15
    bottom: Count = 15

    def __post_init__(self) -> None:
        check_bounds(self)

    def head(self, d: int) -> Head:
        top = min(self.top, d)
        return Head(top, min(self.bottom, d - top))

    def scalars(self, d: int) -> int:
        head = self.head(d)
        return super().scalars(d) - head.bottom * head.top

    def fold(self, M: Bordered, weight: float = 1.0) -> HierarchicalMatrix:
        t, A = M.head.top, M.corner
        top, across, bottom = (copied(part) for part in (A[..., :t, :t], A[..., :t, t:], A[..., t:, t:]))
        if weight != 1.0:
            across.mul_(weight)
        return HierarchicalMatrix(M.border, M.diagonal, self, top, across, bottom)
