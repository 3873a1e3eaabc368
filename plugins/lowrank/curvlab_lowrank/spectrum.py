"""Part of a spectrum, continued by one number: the largest eigenvalues of a matrix, and one for all others.

``M ≈ U Diag(D) Uᵀ + c (I − U Uᵀ)``.  What c is decides how much of the small eigenvalues an inverse keeps:

* ``least``: the smallest known eigenvalue (Puiu 2022, arXiv 2210.08494), an upper bound of the others;
* ``mean``: the mean of the others, known from the trace, so that the trace of M is kept;
* ``zero``: the others count as nothing beside the damping.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.verdict import holds

Rest = Literal["least", "mean", "zero"]


@dataclass
class LowRankInverse:
    """``scale · I + U Diag(values) Uᵀ`` of the first ``kept`` columns; the others are zero.

    Products cost ``4 d · kept`` flops a vector.
    """

    scale: Float[Tensor, ""]
    vectors: Float[Tensor, "d r"]
    values: Float[Tensor, " r"]
    kept: int

    @classmethod
    def identity(cls, d: int, rank: int, like: Tensor) -> LowRankInverse:
        """The identity, with room for ``rank`` eigenvectors."""
        r = min(rank, d)
        return cls(like.new_ones(()), like.new_zeros(d, r), like.new_zeros(r), 0)

    def __matmul__(self, x: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
        U, e = self._known
        return (U @ (U.mT @ x).mul_(e.unsqueeze(1))).add_(x * self.scale)

    def rmatmul(self, x: Float[Tensor, "k d"], out: Tensor | None = None) -> Float[Tensor, "k d"]:
        """``x M``, into ``out`` if given."""
        U, e = self._known
        return torch.matmul((x @ U).mul_(e), U.mT, out=out).add_(x * self.scale)

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product with ``columns`` vectors."""
        d = self.vectors.shape[0]
        return float(columns * (4 * d * self.kept + self.kept + 2 * d))

    @property
    def _known(self) -> tuple[Tensor, Tensor]:
        return self.vectors[:, : self.kept], self.values[: self.kept]


def continued_inverse(
    D: Float[Tensor, " k"],
    U: Float[Tensor, "d k"],
    trace: Float[Tensor, ""],
    shift: Float[Tensor, ""] | float,
    rank: int,
    rest: Rest,
) -> LowRankInverse:
    """``(M + shift · I)⁻¹`` from M's k largest eigenvalues D, descending, and their orthonormal vectors U.

    With k = d it is exact.  Raises ``NotPositiveDefinite``.
    """
    d, k = U.shape
    c = continuation(D, trace, d, rest)
    others = c + shift
    if k == d:
        others = torch.ones_like(others)  # there are none
    damped = D + shift
    if not holds((others > 0) & (damped > 0).all() & damped.isfinite().all() & others.isfinite()):
        what = f"a factor of dimension {d} has the damped eigenvalues {float(damped.min()):.3g}"
        raise NotPositiveDefinite(f"{what} (known) and {float(others):.3g} (of the others)")
    found = LowRankInverse.identity(d, rank, U)
    found.scale = others.reciprocal()
    found.vectors[:, :k] = U
    found.values[:k] = damped.reciprocal() - found.scale
    found.kept = k
    return found


def continuation(D: Float[Tensor, " k"], trace: Tensor, d: int, rest: Rest) -> Float[Tensor, ""]:
    """c; zero if all d eigenvalues are known."""
    if rest == "zero" or len(D) == d:
        return torch.zeros_like(D[0])
    if rest == "least":
        return D[-1]
    return ((trace - D.sum()) / (d - len(D))).clamp(min=0.0)
