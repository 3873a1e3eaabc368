"""A step rule that chooses among the iterates of a Krylov solve, then how far to go."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.progress import Iterate
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Count, check_bounds
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Needs
from curvlab.protocols.step import StepRule


@dataclass(frozen=True)
class CGBacktracking(StepRule[Any]):
    """The iterate of least loss on the acceptance sample, then ``then``'s line search along it.

    A late iterate is the better minimum of the quadratic model and often the worse one of the loss
    (Martens 2010, §4.6).  ``choose = "backwards"`` begins with the last and goes back while the loss does
    not get worse; ``"best"`` tries all that were kept.  At most ``tries`` of them, the latest first, each
    for one trial loss.  A step that ``then`` rejects is rejected, and nothing moves.
    """

    chooses = True

    then: StepRule[Any]
    choose: Literal["backwards", "best"] = "backwards"
    tries: Count = 20

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.then.chooses:
            what = f"then = {type(self.then).__name__} also chooses among iterates; expected a line search"
            raise ConfigError(Fault(what, path="then", hint='use a line search, such as then = "armijo"'))

    def needs(self, step: int) -> Needs:
        return Needs(losses=self.tries) | self.then.needs(step)

    def rate(self, step: int) -> float:
        return self.then.rate(step)

    def init(self, like: BlockVector) -> Any:
        return self.then.init(like)

    def search(self, state: Any, line: Line, step: int) -> Step:
        alpha = self.rate(step) * line.rate
        best: Iterate | None = None
        least = math.inf
        for iterate in line.iterates[: -self.tries - 1 : -1]:
            loss = line.loss_of(iterate.x, alpha)
            if loss <= least:  # never for NaN; and of two that are equal, the shorter step
                best, least = iterate, loss
            elif self.choose == "backwards" and best is not None and math.isfinite(loss):
                break
        chosen = line.update if best is None else best.x
        return self.then.search(state, replace(line, update=chosen), step)
