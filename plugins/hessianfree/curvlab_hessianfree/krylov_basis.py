"""An orthonormal basis of a Krylov space, and the minimizer of the model in it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.linalg import factorizations
from curvlab.linalg.cg import Stop
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.progress import Iterate
from curvlab.linalg.secants import Collector, Pairs
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Count, Inside, check_bounds
from curvlab.protocols.evidence import Solve
from curvlab.protocols.krylov import Krylov

#: coordinates of a basis that are recombined at a time
CHUNK = 2**16


@dataclass(frozen=True)
class KrylovBasis(Krylov):
    """The space of ``M b, (M A) M b, (M A)² M b, …`` and of the start, by modified Gram–Schmidt.

    ``dimension`` vectors and the start, if there is one: the last solution, where Krylov subspace descent
    has the last step (Vinyals and Povey 2012, arXiv 1111.4259).  The solution is the minimizer of
    ``½ xᵀAx − bᵀx`` in that space, through the eigenvalues of ``Vᵀ A V``, those below ``floor`` times the
    largest raised to it.
    ``Solve.iterates`` are the partial sums of the solution over the eigenvectors of ``Vᵀ A V``, the
    largest eigenvalue first: their differences are conjugate and span the space, wherever b has a part in
    it.  One product a vector; memory ``dimension + 1`` vectors.

    The powers end where rounding would choose the next direction.  A Gram matrix of powers of length one is
    known up to the rounding ε of their dtype, so that a power names a direction only if √ε of it is outside
    the space of those before.  That share is the product of the shares that the vectors keep when they are
    made orthogonal.  Some 8 to 10 of 20 powers remain in float32, most in float64.
    """

    dimension: Count = 20
    floor: Inside = 1e-4

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def limit(self) -> int:
        return self.dimension + 1

    @property
    def iterates(self) -> bool:
        return True

    def solve(
        self,
        A: LinearOperator[BlockVector],
        b: BlockVector,
        *,
        x0: BlockVector | None = None,
        M: Callable[[BlockVector], BlockVector] | None = None,
        pairs: Pairs | None = None,
    ) -> Solve:
        basis: list[BlockVector] = []
        columns: list[list[float]] = []  # of Vᵀ A V, from its diagonal up
        kept = Collector(pairs)
        following = b if M is None else M(b)
        starts = [] if x0 is None or not float(x0.norm()) > 0 else [x0]
        least = math.sqrt(torch.finfo(b.dtype).eps)
        share = 1.0  # of the last power, what is outside the space of those before
        while len(basis) < self.dimension + 1:
            v = None
            if share >= least and len(basis) < self.dimension:
                if not following.is_finite():
                    return Solve(b.zeros_like(), len(basis), Stop.NONFINITE)
                v, outside = _orthonormal(following, basis)
                share *= outside
            if v is None or share < least:
                if not starts:
                    break
                v, outside = _orthonormal(starts.pop(), basis)
                if outside < least:
                    break
            basis.append(v)
            Av = A @ v
            kept.see(v, Av)
            columns.append([float(u.dot(Av)) for u in basis])
            if not all(map(math.isfinite, columns[-1])):
                return Solve(b.zeros_like(), len(basis) - 1, Stop.NONFINITE)
            following = Av if M is None else M(Av)
        if not basis:
            return Solve(b.zeros_like(), 0, Stop.CONVERGED)
        values, vectors = factorizations.eigh(_symmetric(columns))
        values = values.clamp_min(self.floor * float(values.abs().max())).flip(0)
        vectors = vectors.flip(1)
        along = vectors.mT @ torch.tensor([float(v.dot(b)) for v in basis], dtype=torch.float64, device="cpu")
        sums = torch.cumsum(vectors * (along / values), dim=1)  # column k: of the first k + 1 eigenvectors
        bends = torch.cumsum(along.square() / values, dim=0).tolist()
        _recombine_(basis, sums.mT)
        iterates = tuple(
            Iterate(x, k + 1, bend) for k, (x, bend) in enumerate(zip(basis, bends, strict=True))
        )
        reason = Stop.CONVERGED if share < least else Stop.LIMIT
        return Solve(basis[-1], len(basis), reason, iterates, kept.secants())


def _recombine_(basis: list[BlockVector], weights: Tensor) -> None:
    """Each vector of a basis becomes a combination of all: ``v_k ← Σ_j weights[k, j] v_j``."""
    flats = [v.flat for v in basis]
    W = weights.to(flats[0])
    for start in range(0, flats[0].numel(), CHUNK):
        part = W @ torch.stack([f[start : start + CHUNK] for f in flats])
        for f, row in zip(flats, part, strict=True):
            f[start : start + CHUNK] = row


def _orthonormal(v: BlockVector, basis: list[BlockVector]) -> tuple[BlockVector, float]:
    """``v`` without its part in the space, at length one, and the share of v's length that this part is."""
    length = float(v.norm())
    if length == 0:
        return v, 0.0
    rest = v * (1.0 / length)
    for _ in range(2):  # once more: what rounding left of the first time
        for u in basis:
            rest.add_(u, -float(u.dot(rest)))
    left = float(rest.norm())
    return rest.scale_(1.0 / left) if left > 0 else rest, left


def _symmetric(columns: list[list[float]]) -> Tensor:
    """The symmetric matrix of these columns of its upper half."""
    C = torch.zeros(len(columns), len(columns), dtype=torch.float64, device="cpu")
    for k, column in enumerate(columns):
        C[: k + 1, k] = torch.tensor(column, dtype=torch.float64, device="cpu")
    return C + C.mT - torch.diag(C.diagonal())
