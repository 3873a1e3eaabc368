"""The largest eigenvalues of a symmetric PSD matrix, by a randomized range and subspace iteration."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.psd import nonnegative
from curvlab.protocols.backend import Backend

#: rank to begin with where it is adapted; it doubles until it is enough
FIRST = 32


@dataclass(frozen=True)
class Search:
    """How eigenvalues are looked for.

    ``rank`` of them, or as few as reach below ``ratio`` times the largest, in steps of a factor 2;
    ``oversampling`` more directions are iterated ``rounds`` times.
    """

    rank: int
    oversampling: int
    rounds: int
    ratio: float

    def largest(
        self, M: Float[Tensor, "d d"], backend: Backend, generator: torch.Generator
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "d k"]]:
        """Eigenvalues, descending, and their vectors; all of them, exactly, where that is no more work.

        Raises ``NotPositiveDefinite``.
        """
        d = M.shape[0]
        most = min(self.rank, d)
        k = min(FIRST, most) if self.ratio > 0 else most
        while True:
            D, U = self._of_rank(M, k, backend, generator)
            if k == most or float(D[-1]) <= self.ratio * float(D[0]):
                return D, U
            k = min(2 * k, most)

    def _of_rank(
        self, M: Float[Tensor, "d d"], k: int, backend: Backend, generator: torch.Generator
    ) -> tuple[Float[Tensor, " k"], Float[Tensor, "d k"]]:
        d, q = M.shape[0], k + self.oversampling
        if q >= d:
            values, vectors = backend.eigh(M)
        else:
            Q = torch.randn(d, q, generator=generator, dtype=M.dtype, device=M.device)
            for _ in range(self.rounds + 1):
                Q = backend.qr(M @ Q)
            values, small = backend.eigh(Q.mT @ (M @ Q))
            vectors = Q @ small
        values, vectors = nonnegative(values).flip(0)[:k], vectors.flip(1)[:, :k]
        return values, vectors.contiguous()
