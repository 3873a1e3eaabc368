"""No preconditioner: the update is the gradient."""

from __future__ import annotations

from dataclasses import dataclass

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Solve
from curvlab.protocols.preconditioner import Preconditioner


@dataclass(frozen=True)
class Identity(Preconditioner[None]):
    """``x = g``."""

    separable = True

    def init(self, like: BlockVector, ctx: Context) -> None:
        return None

    def fallible(self, state: None, step: int) -> bool:
        return False

    def apply(self, state: None, v: BlockVector, ctx: Context) -> Solve:
        return Solve(v.borrow())
