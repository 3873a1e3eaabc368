"""Krylov solvers with their stopping rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from curvlab.linalg.cg import REFRESH, conjugate_gradients
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.progress import Trace
from curvlab.linalg.secants import Pairs
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Count, Fraction, Natural, Ratio, check_bounds
from curvlab.protocols.evidence import Solve
from curvlab.protocols.krylov import Krylov


@dataclass(frozen=True)
class ConjugateGradients(Krylov):
    """Preconditioned CG until ``‖b − A x‖ ≤ tolerance · ‖b‖`` or ``max_iterations``.

    Or until too little is gained (``progress``, ``window``: Martens 2010, §4.4; 0 turns either rule off).
    ``grid`` > 1 keeps the iterates ``⌈gridʲ⌉`` for a step rule to choose from, the latest ``kept`` and
    the last; each costs one vector.
    """

    max_iterations: Count = 50
    tolerance: Fraction = 1e-3
    progress: Fraction = 0.0
    window: Count = 10
    grid: Ratio = 0.0
    kept: Natural = 8

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def limit(self) -> int:
        return self.max_iterations + self.max_iterations // REFRESH + 1

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
        result = conjugate_gradients(
            A,
            b,
            x0=x0,
            M=M,
            max_iterations=self.max_iterations,
            tolerance=self.tolerance,
            progress=self.progress,
            window=self.window,
            pairs=pairs,
            trace=Trace(self.grid, self.kept, self.max_iterations),
        )
        return Solve(result.x, result.iterations, result.reason, result.iterates, result.secants)
