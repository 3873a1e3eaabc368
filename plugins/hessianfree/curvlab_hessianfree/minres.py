"""MINRES: the residual of least norm in every Krylov space."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from curvlab.linalg.cg import Stop
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.progress import Stopping, Trace
from curvlab.linalg.secants import Collector, Pairs
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Count, Fraction, Natural, Ratio, check_bounds
from curvlab.protocols.evidence import Solve
from curvlab.protocols.krylov import Krylov


@dataclass(frozen=True)
class MinRes(Krylov):
    """Preconditioned MINRES, as the recurrence of conjugate residuals (Stiefel 1955; Saad 2003, §6.8).

    The solution is the ``x`` in the Krylov space of least ``‖b − A x‖`` in the norm of ``M``; on a positive
    definite A its iterates are those of conjugate residuals, which is how they are computed.  Its steps
    are shorter than those of CG, in ``‖x‖`` and in the model (Fong and Saunders 2012), and a bound on
    its iterations is thus a safer truncation.  ``M`` must be one linear map during the solve.  Settings
    as of ``flexible-cg``.  One product an iteration, one at the start, and one more for a start.
    """

    max_iterations: Count = 250
    progress: Fraction = 5e-4
    window: Count = 10
    tolerance: Fraction = 0.0
    grid: Ratio = 1.3
    kept: Natural = 8

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def limit(self) -> int:
        return self.max_iterations + 2

    @property
    def iterates(self) -> bool:
        return self.grid > 0

    def solve(
        self,
        A: LinearOperator[BlockVector],
        b: BlockVector,
        *,
        x0: BlockVector | None = None,
        M: Callable[[BlockVector], BlockVector] | None = None,
        pairs: Pairs | None = None,
    ) -> Solve:
        stopping = Stopping(self.max_iterations, self.tolerance, self.progress, self.window)
        trace = Trace(self.grid, self.kept, self.max_iterations)
        return minres(A, b, stopping, x0=x0, M=M, pairs=pairs, trace=trace)


def minres(
    A: LinearOperator[BlockVector],
    b: BlockVector,
    stopping: Stopping,
    *,
    x0: BlockVector | None = None,
    M: Callable[[BlockVector], BlockVector] | None = None,
    pairs: Pairs | None = None,
    trace: Trace | None = None,
) -> Solve:
    """Solve ``A x = b`` for a self-adjoint positive definite ``A``, as long as ``stopping`` says.

    Ends at a direction of non-positive curvature, or where ``M`` is not positive, with the iterate
    before it.
    """
    way, kept = trace or Trace(), Collector(pairs)
    warm = x0 is not None and float(x0.norm()) > 0
    x = x0.clone() if warm and x0 is not None else b.zeros_like()
    r = b - A @ x if warm else b.clone()
    model = -0.5 * float(x.dot(r) + x.dot(b))
    way.start(model)
    goal = stopping.tolerance * float(b.norm())
    z = _owned(r if M is None else M(r), r)  # the preconditioned residual, by its own recurrence
    p, Az = z.clone(), A @ z
    Ap = Az.clone()
    zAz = float(z.dot(Az))

    def result(reason: Stop) -> Solve:
        return Solve(x, way.iterations, reason, way.iterates(x, r, b), kept.secants())

    while True:
        residual = float(r.norm())
        if not math.isfinite(residual):
            return result(Stop.NONFINITE)
        if residual <= goal or stopping.idle(way.model):
            return result(Stop.CONVERGED)
        if way.iterations == stopping.max_iterations:
            return result(Stop.LIMIT)
        MAp = _owned(Ap if M is None else M(Ap), Ap)
        curvature, weight = float(p.dot(Ap)), float(Ap.dot(MAp))
        if not (curvature > 0 and weight > 0 and zAz > 0):
            return result(Stop.NONFINITE if curvature != curvature or weight != weight else Stop.CURVATURE)
        kept.see(p, Ap, copy=True)  # it is changed below
        alpha = zAz / weight
        model += alpha * (0.5 * alpha * curvature - float(p.dot(r)))
        x.add_(p, alpha)
        r.add_(Ap, -alpha)
        z.add_(MAp, -alpha)
        way.step(x, r, b, model)
        Az = A @ z
        before, zAz = zAz, float(z.dot(Az))
        p.combine_(zAz / before, z)
        Ap.combine_(zAz / before, Az)


def _owned(v: BlockVector, r: BlockVector) -> BlockVector:
    """A vector apart from ``r`` that may be changed."""
    return v.clone() if v is r else v.owned()
