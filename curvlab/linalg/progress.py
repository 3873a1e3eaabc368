"""What a Krylov solve keeps of its way, and when that way ends.

A solve of ``A x = b`` minimizes ``φ(x) = ½ xᵀAx − bᵀx``.  ``Stopping`` holds the rules, ``Trace`` the history
of φ and a few of the iterates, on a grid that thins out as they change less.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from curvlab.linalg.vectors import BlockVector


@dataclass(frozen=True)
class Iterate:
    """A solution that a solve passed through; ``curvature`` is ``xᵀ C x`` for the *undamped* C."""

    x: BlockVector
    iteration: int
    curvature: float


@dataclass(frozen=True)
class Stopping:
    """When a solve ends.

    ``tolerance``: at ``‖b − A x‖ ≤ tolerance · ‖b‖``.  ``progress``, the relative progress of Martens 2010
    (§4.4): after iteration ``i > k``, with ``k = max(window, ⌊i/10⌋)``, if φ is below its start and
    ``(φ_i − φ_{i−k}) / (φ_i − φ_0) < k · progress``.  The denominator counts from the start, which a warm
    start puts below zero.  Zero turns a rule off.
    """

    max_iterations: int
    tolerance: float = 0.0
    progress: float = 0.0
    window: int = 10

    def idle(self, model: list[float]) -> bool:
        """Whether the last iterations gained too little; ``model`` is φ from the start on."""
        i = len(model) - 1
        k = max(self.window, i // 10)
        if not self.progress or i <= k:
            return False
        gained, whole = model[i] - model[i - k], model[i] - model[0]
        return whole < 0 and gained / whole < k * self.progress


def grid(ratio: float, upto: int) -> frozenset[int]:
    """Iteration numbers ``⌈ratioʲ⌉`` up to ``upto``: 1 2 3 4 5 7 9 11 14 18 24 … for 1.3 (Martens 2010)."""
    found, power = {1}, 1.0
    while power < upto:
        power *= ratio
        found.add(math.ceil(power))
    return frozenset(i for i in found if i <= upto)


@dataclass
class Trace:
    """φ after each iteration, the start's first, and the iterates kept.

    The latest ``kept`` iterates on the grid (``ratio`` > 1) are copied; ``ratio = 0`` keeps none.
    """

    ratio: float = 0.0
    kept: int = 8
    upto: int = 1
    model: list[float] = field(default_factory=list)
    _iterates: deque[Iterate] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self._grid = grid(self.ratio, self.upto) if self.ratio else frozenset()

    @property
    def iterations(self) -> int:
        """Iterations made."""
        return len(self.model) - 1

    def start(self, model: float) -> None:
        """φ at the start of the solve."""
        self.model.append(model)

    def step(self, x: BlockVector, r: BlockVector, b: BlockVector, model: float) -> None:
        """An iteration led to ``x``, where φ is ``model`` and the residual ``r``.  Nothing given is kept."""
        self.model.append(model)
        if self.iterations not in self._grid or not self.kept:
            return
        if len(self._iterates) == self.kept:
            oldest = self._iterates.popleft().x
            oldest.layout.recycle(oldest)
        self._iterates.append(Iterate(x.clone(), self.iterations, curvature_of(x, r, b)))

    def iterates(self, x: BlockVector, r: BlockVector, b: BlockVector) -> tuple[Iterate, ...]:
        """What was kept, from early to late, and the solution ``x`` itself."""
        if not self.ratio or not self.iterations:
            return ()
        earlier = tuple(i for i in self._iterates if i.iteration < self.iterations)
        return (*earlier, Iterate(x, self.iterations, curvature_of(x, r, b)))


def curvature_of(x: BlockVector, r: BlockVector, b: BlockVector) -> float:
    """``xᵀ A x`` where ``r = b − A x``."""
    return float(x.dot(b)) - float(x.dot(r))
