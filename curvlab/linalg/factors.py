"""Symmetric matrices that are multiplied with and not formed: by eigenvalues, or as a square ``K Kᵀ``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.kronecker import Factor
from curvlab.linalg.verdict import holds


@dataclass(frozen=True)
class Spectral:
    """``Q Diag(values) Qᵀ`` as products with Q; ``vectors = None`` is the identity."""

    values: Float[Tensor, " d"]
    vectors: Float[Tensor, "d d"] | None

    def __matmul__(self, x: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
        if self.vectors is None:
            return self.values.unsqueeze(-1) * x
        return self.vectors @ (self.values.unsqueeze(-1) * (self.vectors.mT @ x))

    def rmatmul(self, x: Float[Tensor, "k d"], out: Tensor | None = None) -> Float[Tensor, "k d"]:
        if self.vectors is None:
            return torch.mul(x, self.values, out=out)
        return torch.matmul((x @ self.vectors).mul_(self.values), self.vectors.mT, out=out)

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product with ``columns`` vectors."""
        d = len(self.values)
        return float(d * columns if self.vectors is None else (4 * d * d + d) * columns)


def powers(values: Float[Tensor, "*b d"], p: float) -> Float[Tensor, "*b d"]:
    """``values^p`` of values ≥ 0; raises ``NotPositiveDefinite`` if one has no such power."""
    fit = (values > 0 if p < 0 else values >= 0) & values.isfinite()
    if not holds(fit.all()):
        raise NotPositiveDefinite(
            f"a factor of dimension {values.shape[-1]} has the eigenvalue {float(values[~fit][0]):.3g}, "
            f"which has no power {p:.3g}"
        )
    return values**p


@dataclass(frozen=True)
class Squared:
    """``K Kᵀ`` as two products with K; also for stacked matrices."""

    K: Factor

    def __matmul__(self, x: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        return self.K @ self.K.rmatmul(x.mT).mT

    def rmatmul(self, x: Float[Tensor, "*b k d"], out: Tensor | None = None) -> Float[Tensor, "*b k d"]:
        """``x K Kᵀ``."""
        y = (self.K @ self.K.rmatmul(x).mT).mT
        return y if out is None else out.copy_(y)

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product with ``columns`` vectors."""
        return 2.0 * self.K.flops(columns)
