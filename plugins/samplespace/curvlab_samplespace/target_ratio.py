"""A trust-region rule that takes the longest step whose reduction ratio is large enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Bounds, Inside, Positive, check_bounds
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Needs
from curvlab.protocols.path import DampedPath
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.step import StepRule

#: radii that the first step tries
FIRST = 40
#: shares of the last step that are tried, each half of the one before; their range
SHARES, LEAST, MOST = 4, 0.125, 4.0


@dataclass
class RadiusState:
    """The radius of the last step, 0 before the first; the step, and how much of it may be repeated."""

    radius: float
    last: BlockVector | None
    share: float = 1.0


@dataclass(frozen=True)
class TargetRatio(StepRule[RadiusState]):
    """The longest step of a trust region whose actual over predicted reduction is at least ``target``.

    Steps lie on the path ``x(λ)``.  ``count`` radii between the last one over ``span`` and the last one times
    ``span`` are tried, longest first, and the first that is good enough is taken.  The first step tries the
    longest and its halves.  If no radius is good, the step is rejected, and the next one begins at the
    shortest.  A target as low as 0.075 follows the adaptive radius of arXiv 2607.02194.

    ``repeat``: in a narrow valley the trust region is small and successive steps are parallel.  With the λ
    that was found, moves ``share · last + x(λ)`` are tried, where x solves for what the last step, repeated,
    would leave of the residual (as in SPRING, arXiv 2401.10190).  Shares go from twice the one that last
    paid down to a quarter of it, and the first with a lower loss is taken.  State: a vector.

    ``lr`` bounds the radius.  Costs up to ``count`` + 4 trial losses.
    """

    follows: ClassVar[bool] = True

    lr: Positive | Schedule = 1e6
    target: Inside = 0.075
    span: Annotated[float, Bounds(above=1)] = 3.0
    count: Annotated[int, Bounds(least=2)] = 12
    repeat: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(losses=(self.count if step else FIRST) + SHARES)

    def rate(self, step: int) -> float:
        return at_step(self.lr, step)

    def init(self, like: BlockVector) -> RadiusState:
        return RadiusState(0.0, like.zeros_like() if self.repeat else None)

    def search(self, state: RadiusState, line: Line, step: int) -> Step:
        path = line.path
        assert path is not None, "the method refuses preconditioners without a path"
        most = min(self.rate(step) * line.rate, path.longest)
        for radius in self._radii(state.radius, most):
            damping = path.damping(radius)
            update = path.at(damping)
            loss = line.loss_of(update, 1.0)
            actual, predicted = loss - line.start(), path.predicted(damping)
            if math.isfinite(actual) and predicted < 0 and actual / predicted >= self.target:
                state.radius = radius if radius < path.longest else max(radius, state.radius)
                return Step(self._repeated(state, line, path, update, damping, loss), 1.0)
        state.radius = radius
        if state.last is not None:
            state.last.zero_()
        return Step(line.update, 0.0, accepted=False)

    def _repeated(
        self,
        state: RadiusState,
        line: Line,
        path: DampedPath,
        update: BlockVector,
        damping: float,
        loss: float,
    ) -> BlockVector:
        """The update, or one with a share of the last step where that has a lower loss."""
        if state.last is None:
            return update
        share = state.share
        if float(state.last.norm()) > 0:
            for k in range(SHARES):
                tried = path.beside(state.last, 2.0 * share * 0.5**k, damping)
                if line.loss_of(tried, 1.0) < loss:
                    update, state.share = tried, min(2.0 * share * 0.5**k, MOST)
                    break
            else:
                state.share = max(0.25 * share, LEAST)
        state.last.copy_(update)
        return update

    def _radii(self, last: float, most: float) -> list[float]:
        """Longest first, none above ``most``."""
        if not last:
            return [most * 0.5**k for k in range(FIRST)]
        last = min(last, most)
        ratio = self.span ** (2 / (self.count - 1))
        found = [last * self.span / ratio**k for k in range(self.count)]
        inside = [r for r in found if r < most]
        return inside if len(inside) == len(found) else [most, *inside]
