"""Krylov solvers with their stopping rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from curvlab.linalg.cg import conjugate_gradients
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.settings import at_least, positive
from curvlab.protocols.evidence import Solve
from curvlab.protocols.krylov import Krylov


@dataclass(frozen=True)
class ConjugateGradients(Krylov):
    """Preconditioned CG until ``‖b − A x‖ ≤ tolerance · ‖b‖`` or ``max_iterations``."""

    max_iterations: int = 50
    tolerance: float = 1e-3

    def __post_init__(self) -> None:
        at_least("max_iterations", self.max_iterations, 1)
        positive("tolerance", self.tolerance)

    @property
    def limit(self) -> int:
        return self.max_iterations + self.max_iterations // 50 + 1

    def solve(
        self,
        A: LinearOperator[BlockVector],
        b: BlockVector,
        *,
        x0: BlockVector | None = None,
        M: Callable[[BlockVector], BlockVector] | None = None,
    ) -> Solve:
        result = conjugate_gradients(
            A, b, x0=x0, M=M, max_iterations=self.max_iterations, tolerance=self.tolerance
        )
        return Solve(result.x, result.iterations, result.reason)
