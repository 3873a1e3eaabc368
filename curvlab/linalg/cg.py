"""Preconditioned conjugate gradients: a pure function over block vectors.

Departures from the textbook: the residual is recomputed from its definition every ``REFRESH``
iterations, because the recurrence drifts in float32 (Shewchuk 1994, B.2); a direction of
non-positive curvature ends the solve and keeps the iterate before it, instead of dividing by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.progress import Iterate, Stopping, Trace
from curvlab.linalg.secants import Collector, Pairs, Secant
from curvlab.linalg.vectors import BlockVector

#: every so many iterations r is recomputed as b − A x; one product in fifty is lost to it
REFRESH = 50


class Stop(str, Enum):
    """Why a solve ended."""

    DIRECT = "direct"  #: no iteration: the operator was applied
    CONVERGED = "converged"
    LIMIT = "limit"  #: the iteration limit
    CURVATURE = "curvature"  #: pᵀAp ≤ 0: A is not positive definite there
    NONFINITE = "nonfinite"


@dataclass(frozen=True)
class CGResult:
    """Solution, iterations made, ‖b − A x‖ at the end, why it stopped; iterates and pairs if asked for."""

    x: BlockVector
    iterations: int
    residual: float
    reason: Stop
    iterates: tuple[Iterate, ...] = ()
    secants: tuple[Secant, ...] = ()


def conjugate_gradients(
    A: LinearOperator[BlockVector],
    b: BlockVector,
    *,
    x0: BlockVector | None = None,
    M: Callable[[BlockVector], BlockVector] | None = None,
    max_iterations: int,
    tolerance: float,
    progress: float = 0.0,
    window: int = 10,
    pairs: Pairs | None = None,
    trace: Trace | None = None,
) -> CGResult:
    """Solve ``A x = b`` for a self-adjoint PSD ``A`` until ``‖b − A x‖ ≤ tolerance · ‖b‖``.

    Or until ``max_iterations``, or until too little ``progress`` is made (see ``Stopping``).
    ``M`` maps a residual to a preconditioned one and must be fixed, symmetric and positive
    definite during the solve.  One product with A per iteration (and one more if ``x0`` is given).
    ``pairs`` says which directions are kept with their products; ``trace`` takes down the way.
    """
    assert A.psd, f"conjugate gradients need a positive semi-definite operator, got {type(A).__name__}"
    x = b.zeros_like() if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - A @ x
    z = r if M is None else M(r)
    p = z.clone()
    rz = float(r.dot(z))
    stopping = Stopping(max_iterations, tolerance, progress, window)
    goal = tolerance * float(b.norm())
    residual, iterations = float(r.norm()), 0
    kept, way = Collector(pairs), trace or Trace()
    model = 0.0 if x0 is None else -0.5 * float(x.dot(r) + x.dot(b))
    way.start(model)

    def result(reason: Stop) -> CGResult:
        return CGResult(x, iterations, residual, reason, way.iterates(x, r, b), kept.secants())

    while residual > goal and rz != 0.0 and not stopping.idle(way.model):
        if iterations == max_iterations:
            return result(Stop.LIMIT)
        Ap = A @ p
        curvature = float(p.dot(Ap))
        if not curvature > 0:  # also catches NaN
            return result(Stop.NONFINITE if curvature != curvature else Stop.CURVATURE)
        kept.see(p, Ap)
        alpha = rz / curvature
        x.add_(p, alpha)
        iterations += 1
        if iterations % REFRESH == 0:
            r = b - A @ x
        else:
            r = r.plus(Ap, -alpha)
        residual = float(r.norm())
        model -= 0.5 * alpha * rz
        way.step(x, r, b, model)
        z = r if M is None else M(r)
        rz_old, rz = rz, float(r.dot(z))
        p.scale_(rz / rz_old).add_(z)
    # a residual that is not finite ends the loop too; for such a b, x is still the finite zero
    good = math.isfinite(residual) and x.is_finite()
    return result(Stop.CONVERGED if good else Stop.NONFINITE)
