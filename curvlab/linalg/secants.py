"""Secant pairs of a linear solve: which are kept, and for which damping they hold.

A Krylov solver multiplies its operator with a direction in every iteration; direction and product
are a pair ``(s, A s)`` that costs nothing more.  ``Collector`` keeps some of them while the solve goes
on, never more than it was asked for.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from curvlab.linalg.vectors import BlockVector


@dataclass(frozen=True)
class Secant:
    """``y = (C + damping · I) s``, up to a common factor of s and y, which no use of them depends on."""

    s: BlockVector
    y: BlockVector
    damping: float

    def shifted(self, damping: float) -> Secant:
        """The same pair for another damping: ``y + (damping' − damping) s``, exact for the same C."""
        if damping == self.damping:
            return self
        return Secant(self.s, self.y.plus(self.s, damping - self.damping), damping)


class Which(str, Enum):
    """Which pairs of a solve are kept."""

    LAST = "last"
    FIRST = "first"
    EVEN = "even"  #: spread over the solve: every 1st, 2nd, 4th, … as it goes on
    ALL = "all"

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class Pairs:
    """How many pairs of a solve are wanted, and which.

    ``count`` of ``ALL`` says how many there is room for: a solver that may make more is refused.
    """

    count: int = 0
    which: Which = Which.LAST


class Collector:
    """The pairs of a solve under way.

    Holds at most ``count`` pairs at any time (all of them under ``ALL``).
    """

    def __init__(self, wanted: Pairs | None) -> None:
        self.wanted = wanted or Pairs()
        self._kept: deque[tuple[BlockVector, BlockVector]] = deque()
        self._seen = 0
        self._stride = 1

    def see(self, s: BlockVector, y: BlockVector, *, copy: bool = False) -> bool:
        """The next pair, and whether it is kept: ``s`` as a copy; ``y`` as it is, unless ``copy``."""
        count, which = self.wanted.count, self.wanted.which
        index = self._seen
        self._seen += 1
        if which is Which.ALL:
            self._kept.append((s.clone(), y.clone() if copy else y))
            return True
        if count == 0 or (which is Which.FIRST and len(self._kept) == count):
            return False
        if which is Which.EVEN:
            if index % self._stride:
                return False
            if len(self._kept) == count:
                self._thin()
                if index % self._stride:
                    return False
        elif which is Which.LAST and len(self._kept) == count:
            self._kept.popleft()
        self._kept.append((s.clone(), y.clone() if copy else y))
        return True

    def _thin(self) -> None:
        """Drop every other pair, and take half as many from now on."""
        self._stride *= 2
        self._kept = deque(pair for k, pair in enumerate(self._kept) if k % 2 == 0)

    def secants(self, damping: float = 0.0) -> tuple[Secant, ...]:
        """What was kept, oldest first, of an operator whose damping is ``damping``."""
        return tuple(Secant(s, y, damping) for s, y in self._kept)
