"""Conjugate gradients that allow a preconditioner which changes during the solve.

Every new direction is made conjugate to earlier ones by what was computed of *those*,
``p = z − Σ_j (zᵀ A p_j / p_jᵀ A p_j) p_j``, instead of by a formula that is right only while M is one
linear map (Notay 2000, "Flexible conjugate gradients", algorithm 1).  With one earlier direction that is
the Polak–Ribière form of β.
"""

from __future__ import annotations

import math
from collections import deque
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

Precondition = Callable[[BlockVector], BlockVector]


@dataclass(frozen=True)
class FlexibleCG(Krylov):
    """Flexible CG, stopped by relative progress, that keeps iterates for a step rule to choose from.

    ``progress`` and ``window``: relative progress (Martens 2010, §4.4); ``tolerance``: residual over
    right-hand side; zero turns a rule off.  ``directions``: how many earlier directions a new one is
    made conjugate to; from two on in periods, as Notay recommends: with the last
    ``max(1, k mod (directions + 1))`` of them at iteration k.  Each costs two vectors.  ``grid``: the
    iterates ``⌈gridʲ⌉`` are kept, the latest ``kept`` of them and the last; each costs one vector.

    A start whose model is above that of zero is dropped.  One product an iteration, and one for a start.
    """

    varying = True

    max_iterations: Count = 250
    progress: Fraction = 5e-4
    window: Count = 10
    tolerance: Fraction = 0.0
    directions: Count = 1
    grid: Ratio = 1.3
    kept: Natural = 8

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def limit(self) -> int:
        return self.max_iterations + 1

    @property
    def iterates(self) -> bool:
        return self.grid > 0

    def solve(
        self,
        A: LinearOperator[BlockVector],
        b: BlockVector,
        *,
        x0: BlockVector | None = None,
        M: Precondition | None = None,
        pairs: Pairs | None = None,
    ) -> Solve:
        stopping = Stopping(self.max_iterations, self.tolerance, self.progress, self.window)
        trace = Trace(self.grid, self.kept, self.max_iterations)
        return flexible_cg(A, b, stopping, x0=x0, M=M, pairs=pairs, trace=trace, directions=self.directions)


@dataclass
class _Direction:
    """A direction p, A p, and pᵀ A p; ``lent``: A p is kept elsewhere too."""

    p: BlockVector
    Ap: BlockVector
    curvature: float
    lent: bool

    def recycle(self) -> None:
        """Give its memory back; it is not needed any more."""
        self.p.layout.recycle(self.p)
        if not self.lent:
            self.Ap.layout.recycle(self.Ap)


def flexible_cg(
    A: LinearOperator[BlockVector],
    b: BlockVector,
    stopping: Stopping,
    *,
    x0: BlockVector | None = None,
    M: Precondition | None = None,
    pairs: Pairs | None = None,
    trace: Trace | None = None,
    directions: Count = 1,
) -> Solve:
    """Solve ``A x = b`` for a self-adjoint positive definite ``A``, as long as ``stopping`` says.

    Ends at a direction of non-positive curvature with the iterate before it; goes on without ``M``
    where that is not positive (``zᵀ r ≤ 0``).  ``x`` is finite whatever happens.
    """
    way, kept = trace or Trace(), Collector(pairs)
    x, r, model = _start(A, b, x0)
    way.start(model)
    earlier: deque[_Direction] = deque()
    goal = stopping.tolerance * float(b.norm()) if stopping.tolerance else None

    def result(reason: Stop) -> Solve:
        return Solve(x, way.iterations, reason, way.iterates(x, r, b), kept.secants())

    while True:
        if stopping.idle(way.model):
            return result(Stop.CONVERGED)
        if goal is not None and float(r.norm()) <= goal:
            return result(Stop.CONVERGED)
        if way.iterations == stopping.max_iterations:
            return result(Stop.LIMIT)
        z = r if M is None else M(r)
        p = _conjugated(z, earlier)
        if z is not r:
            z.layout.recycle(z)
        descent = float(p.dot(r))  # zᵀr, because r is orthogonal to the directions before
        if M is not None and descent <= 0 and float(r.norm()) > 0:
            M = None
            _forget(earlier, 0)
            p, descent = p.copy_(r), float(r.dot(r))
        if descent == 0:
            return result(Stop.CONVERGED)
        Ap = A @ p
        curvature = float(p.dot(Ap))
        if not math.isfinite(descent + curvature):
            return result(Stop.NONFINITE)
        if curvature <= 0:
            return result(Stop.CURVATURE)
        earlier.append(_Direction(p, Ap, curvature, kept.see(p, Ap)))
        alpha = descent / curvature
        x.add_(p, alpha)
        r.add_(Ap, -alpha)
        model -= 0.5 * alpha * descent
        way.step(x, r, b, model)
        _forget(earlier, max(1, way.iterations % (directions + 1)))


def _start(
    A: LinearOperator[BlockVector], b: BlockVector, x0: BlockVector | None
) -> tuple[BlockVector, BlockVector, float]:
    """Solution, residual and model to begin with."""
    if x0 is not None and float(x0.norm()) > 0:
        r = b - A @ x0
        model = -0.5 * float(x0.dot(r) + x0.dot(b))
        if model < 0:
            return x0.clone(), r, model
    return b.zeros_like(), b.clone(), 0.0


def _conjugated(z: BlockVector, earlier: deque[_Direction]) -> BlockVector:
    """``z`` made conjugate to earlier directions, one after the other; a vector of its own."""
    p: BlockVector | None = None
    for old in earlier:
        at = z if p is None else p
        beta = -float(at.dot(old.Ap)) / old.curvature
        p = z.plus(old.p, beta) if p is None else p.add_(old.p, beta)
    return z.clone() if p is None else p


def _forget(earlier: deque[_Direction], left: int) -> None:
    """Keep the latest ``left`` directions."""
    while len(earlier) > left:
        earlier.popleft().recycle()
