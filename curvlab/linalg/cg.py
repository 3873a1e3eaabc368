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
    """Solution, iterations made, ‖b − A x‖ at the end, and why it stopped."""

    x: BlockVector
    iterations: int
    residual: float
    reason: Stop


def conjugate_gradients(
    A: LinearOperator[BlockVector],
    b: BlockVector,
    *,
    x0: BlockVector | None = None,
    M: Callable[[BlockVector], BlockVector] | None = None,
    max_iterations: int,
    tolerance: float,
) -> CGResult:
    """Solve ``A x = b`` for a self-adjoint PSD ``A`` until ``‖b − A x‖ ≤ tolerance · ‖b‖``.

    ``M`` maps a residual to a preconditioned one and must be fixed, symmetric and positive
    definite during the solve.  One product with A per iteration (and one more if ``x0`` is given).
    """
    assert A.psd, f"conjugate gradients need a PSD operator, got {type(A).__name__}"
    x = b.zeros_like() if x0 is None else x0.clone()
    r = b.clone() if x0 is None else b - A @ x
    z = r if M is None else M(r)
    p = z.clone()
    rz = r.dot(z)
    goal = tolerance * float(b.norm())
    residual, iterations = float(r.norm()), 0
    while residual > goal:
        if iterations == max_iterations:
            return CGResult(x, iterations, residual, Stop.LIMIT)
        Ap = A @ p
        curvature = float(p.dot(Ap))
        if not curvature > 0:  # also catches NaN
            reason = Stop.NONFINITE if curvature != curvature else Stop.CURVATURE
            return CGResult(x, iterations, residual, reason)
        alpha = float(rz) / curvature
        x.add_(p, alpha)
        iterations += 1
        if iterations % REFRESH == 0:
            r = b - A @ x
        else:
            r = r.plus(Ap, -alpha)
        residual = float(r.norm())
        z = r if M is None else M(r)
        rz_old, rz = rz, r.dot(z)
        p.scale_(rz / rz_old).add_(z)
    # a residual that is not finite ends the loop too; for such a b, x is still the finite zero
    good = math.isfinite(residual) and x.is_finite()
    return CGResult(x, iterations, residual, Stop.CONVERGED if good else Stop.NONFINITE)
