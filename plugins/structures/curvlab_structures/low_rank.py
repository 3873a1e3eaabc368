"""Low-rank matrices plus a multiple of the identity."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import CapabilityError, Fault, NotPositiveDefinite
from curvlab.linalg import factorizations
from curvlab.linalg.factors import powers
from curvlab.linalg.verdict import holds
from curvlab.protocols.backend import Backend
from curvlab.protocols.bounds import Count, check_bounds
from curvlab.protocols.structure import Family, Gram, Structure


@dataclass(frozen=True)
class LowRankMatrix(Structure):
    """``c I + U Diag(e) Uᵀ``: ``scale`` c, ``vectors`` U with orthonormal columns, ``values`` e."""

    scale: Float[Tensor, "*b"]
    vectors: Float[Tensor, "*b d k"]
    values: Float[Tensor, "*b k"]
    family: LowRank

    @property
    def d(self) -> int:
        return self.vectors.shape[-2]

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.scale.shape)

    def dense(self) -> Float[Tensor, "*b d d"]:
        A = (self.vectors * self.values.unsqueeze(-2)) @ self.vectors.mT
        A.diagonal(dim1=-2, dim2=-1).add_(self.scale.unsqueeze(-1))
        return A

    def tensors(self) -> dict[str, Tensor]:
        return {"scale": self.scale, "vectors": self.vectors, "values": self.values}

    def __matmul__(self, x: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        inner = (self.vectors.mT @ x).mul_(self.values.unsqueeze(-1))
        return (self.vectors @ inner).addcmul_(x, self.scale[..., None, None])

    def rmatmul(self, x: Float[Tensor, "*b k d"], out: Tensor | None = None) -> Float[Tensor, "*b k d"]:
        inner = (x @ self.vectors).mul_(self.values.unsqueeze(-2))
        y = torch.matmul(inner, self.vectors.mT, out=out)
        return y.addcmul_(x, self.scale[..., None, None])

    def flops(self, columns: int) -> float:
        d, k = self.vectors.shape[-2:]
        return float(columns * (4 * d * k + k + 2 * d))

    def combine_(self, a: float | Tensor, other: Structure, b: float | Tensor) -> LowRankMatrix:
        """Refused: a sum of two members has twice the rank."""
        raise CapabilityError(
            Fault(
                "members of low-rank cannot be added: the sum has a higher rank",
                hint='pass their rows to average_, or use a linear family, such as "block-diagonal"',
            )
        )

    def shift_(self, c: float) -> LowRankMatrix:
        self.scale.add_(c)
        return self

    def mean_diagonal(self) -> Float[Tensor, "*b"]:
        return self.scale + self.values.sum(-1) / self.d

    def norm(self) -> Float[Tensor, "*b"]:
        d, k = self.vectors.shape[-2:]
        top = torch.linalg.vector_norm(self.values + self.scale.unsqueeze(-1), dim=-1)
        return torch.hypot(top, (d - k) ** 0.5 * self.scale)


@dataclass(frozen=True)
class LowRank(Family, Gram):
    """Π(S) = c I + U Diag(e) Uᵀ of the ``rank`` largest eigenvalues c + e; c is the mean of all others.

    The nearest of all ``c I +`` PSD of that rank, with the trace of S.  With k = min(rank, d) it stores
    ``d·k + k + 1`` scalars, and a product with a vector costs ``4·d·k`` flops.  An average projects the exact
    sum of ``keep·M`` and the new Gram from its n + k rows.  It takes their inner products (the outer ones if
    n + k > d, the only case with a d × d matrix), the p = min(n + k, d) eigenvectors of those, and a thin
    QR.  That costs about ``2·d·(n + k)·p + 9–25·p³ + 4·d·k²`` flops.  An inverse costs d·k.
    Members are not a vector space.  Source: arXiv 2210.08494.
    """

    linear = False

    rank: Count = 32

    def __post_init__(self) -> None:
        check_bounds(self)

    def project(self, S: Float[Tensor, "*b d d"]) -> LowRankMatrix:
        """By a dense eigendecomposition; what is not finite stays so."""
        values, vectors = factorizations.eigh(S.nan_to_num(0.0, 0.0, 0.0))
        d, blemish = S.shape[-1], 0.0 * S.sum((-2, -1))
        k = min(self.rank, d)
        values, vectors = values.flip(-1), vectors.flip(-1)
        c = values[..., min(k, d - 1) :].mean(-1)
        e = (values[..., :k] - c.unsqueeze(-1)).clamp(min=0.0)
        c, U = c + blemish, vectors[..., :k].clone(memory_format=torch.contiguous_format)
        return LowRankMatrix(c, U, e, self)

    def zeros(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> LowRankMatrix:
        k = min(self.rank, d)
        vectors = like.new_zeros(*batch, d, k)
        vectors.diagonal(dim1=-2, dim2=-1).fill_(1.0)
        return LowRankMatrix(like.new_zeros(batch), vectors, like.new_zeros(*batch, k), self)

    def eye(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> LowRankMatrix:
        return self.zeros(d, like=like, batch=batch).shift_(1.0)

    def scalars(self, d: int) -> int:
        k = min(self.rank, d)
        return d * k + k + 1

    def average_(
        self, M: Structure, keep: float, X: Float[Tensor, "n d"], weight: float, backend: Backend
    ) -> None:
        """M ← Π(keep · M + weight · XᵀX)."""
        assert isinstance(M, LowRankMatrix)
        d, k = M.vectors.shape
        old, new = M.vectors * (keep * M.values).sqrt(), X * weight**0.5
        rows = torch.cat([old.mT, new])  # rowsᵀ rows = keep · U Diag(e) Uᵀ + weight · XᵀX
        size = rows.square().sum()
        rows = rows.nan_to_num(0.0, 0.0, 0.0)
        short = rows.shape[0] <= d
        values, vectors = backend.eigh(rows @ rows.mT if short else rows.mT @ rows)
        values, vectors = values.flip(-1), vectors.flip(-1)[:, :k]
        U = backend.qr(rows.mT @ vectors if short else vectors)
        q = min(k, d - 1)
        c = ((size - values[:q].sum()) / (d - q)).clamp(min=0.0)
        M.scale.mul_(keep).add_(c)
        M.values.copy_((values[:k] - c).clamp(min=0.0))
        M.vectors.copy_(U)

    def inverse(self, M: Structure, shift: Tensor | float, backend: Backend) -> LowRankMatrix:
        assert isinstance(M, LowRankMatrix)
        c = M.scale + shift
        damped = M.values + c
        if not holds((c > 0) & (damped > 0).all() & damped.isfinite().all()):
            raise NotPositiveDefinite(f"a low-rank factor of dimension {M.d} has an eigenvalue ≤ 0")
        return LowRankMatrix(c.reciprocal(), M.vectors.clone(), -M.values / (c * damped), self)

    def power(self, M: Structure, p: float, shift: Tensor | float, backend: Backend) -> LowRankMatrix:
        """No matrix is formed: the eigenvectors are those of M, and all others share one eigenvalue."""
        assert isinstance(M, LowRankMatrix)
        top = powers((M.values + M.scale).clamp(min=0.0) + shift, p)
        # with as many vectors as dimensions there are no others, and nothing to be learned from the scale
        rest = powers(M.scale.clamp(min=0.0)[None] + shift, p)[0] if len(top) < M.d else top.new_ones(())
        return LowRankMatrix(rest, M.vectors.clone(), top - rest, self)

    def eigh(self, M: Structure, backend: Backend) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"] | None]:
        """The basis is completed by a QR decomposition: about ``4·d²·k`` flops and a dense result."""
        assert isinstance(M, LowRankMatrix)
        if not holds(M.scale.isfinite() & M.values.isfinite().all()):
            raise NotPositiveDefinite(f"a low-rank factor of dimension {M.d} holds a non-finite value")
        d, k = M.vectors.shape
        Q = backend.qr(M.vectors, complete=True)
        Q[:, :k] = M.vectors
        values = torch.cat([M.values + M.scale, M.scale.expand(d - k)])
        return values.clamp_(min=0.0), Q
