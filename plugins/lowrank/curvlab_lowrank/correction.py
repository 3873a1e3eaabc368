"""Eigenvalues and vectors of a low-rank member, made those of a dense matrix again: all of them, or some."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.protocols.backend import Backend
from curvlab_lowrank.eigenvalues import Search
from curvlab_lowrank.spectrum import continuation


@runtime_checkable
class LowRankMember(Protocol):
    """``c I + U Diag(e) Uᵀ``, of any structure that holds these: c, U with orthonormal columns, and e ≥ 0."""

    @property
    def scale(self) -> Float[Tensor, ""]:
        """c."""

    @property
    def vectors(self) -> Float[Tensor, "d r"]:
        """U."""

    @property
    def values(self) -> Float[Tensor, " r"]:
        """e."""


def overwrite_(
    L: LowRankMember, M: Float[Tensor, "d d"], search: Search, backend: Backend, generator: torch.Generator
) -> None:
    """``L ← c I + U Diag(e) Uᵀ`` of M's largest eigenvalues c + e, by ``search``; c is the others' mean.

    L holds as many as ``search`` finds.  Costs ``2 (rounds + 2) d² q + 4 (rounds + 2) d q²`` flops for q
    columns.  Raises ``NotPositiveDefinite``.
    """
    D, U = search.largest(M, backend, generator)
    c = continuation(D, M.diagonal().sum(), len(M), "mean")
    L.scale.copy_(c)
    L.values.copy_((D - c).clamp(min=0.0))
    L.vectors.copy_(U)


def correct_(L: LowRankMember, M: Float[Tensor, "d d"], columns: Tensor, backend: Backend) -> None:
    """L between the ``columns`` of U becomes what M is there: its eigenvalues, and U turned among them.

    ``Qᵀ M Q = V Diag(D) Vᵀ`` with Q = U[:, columns]; then ``Q ← Q V`` and ``e ← max(D − c, 0)``.  Neither
    ``‖Qᵀ (L − M) Q‖`` nor ``‖L − M‖`` grows (Frobenius norms), and U stays as orthonormal as it was.  Costs
    ``2 d² m + 4 d m²`` flops for m columns.
    """
    Q = L.vectors[:, columns]
    D, V = backend.eigh(Q.mT @ (M @ Q))  # in directions that M lacks, rounding of M's largest eigenvalue
    L.vectors[:, columns] = Q @ V
    L.values[columns] = (D - L.scale).clamp(min=0.0)
