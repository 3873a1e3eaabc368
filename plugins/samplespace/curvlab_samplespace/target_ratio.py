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
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.step import StepRule

#: radii that the first step tries
FIRST = 40


@dataclass
class RadiusState:
    """The radius of the last step; 0 before the first."""

    radius: float = 0.0


@dataclass(frozen=True)
class TargetRatio(StepRule[RadiusState]):
    """The longest step of a trust region whose actual over predicted reduction is at least ``target``.

    Steps lie on the path ``x(λ)``.  ``count`` radii between the last one over ``span`` and the last one times
    ``span`` are tried, longest first, and the first that is good enough is taken: a long step over a ridge is
    better than a short one before it.  The first step tries the longest and its halves.  If no radius is
    good, the step is rejected, and the next one begins at the shortest.  A target as low as 0.075 follows the
    adaptive radius of arXiv 2607.02194. ``lr`` bounds the radius.  Costs up to ``count`` trial losses and
    products with factors that are there already.
    """

    follows: ClassVar[bool] = True

    lr: Positive | Schedule = 1e6
    target: Inside = 0.075
    span: Annotated[float, Bounds(above=1)] = 10.0
    count: Annotated[int, Bounds(least=2)] = 20

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(losses=self.count if step else FIRST)

    def rate(self, step: int) -> float:
        return at_step(self.lr, step)

    def init(self, like: BlockVector) -> RadiusState:
        return RadiusState()

    def search(self, state: RadiusState, line: Line, step: int) -> Step:
        path = line.path
        assert path is not None, "the method refuses preconditioners without a path"
        most = min(self.rate(step) * line.rate, path.longest)
        for radius in self._radii(state.radius, most):
            damping = path.damping(radius)
            update = path.at(damping)
            actual = line.loss_of(update, 1.0) - line.start()
            predicted = path.predicted(damping)
            if math.isfinite(actual) and predicted < 0 and actual / predicted >= self.target:
                state.radius = radius if radius < path.longest else max(radius, state.radius)
                return Step(update, 1.0)
        state.radius = radius
        return Step(line.update, 0.0, accepted=False)

    def _radii(self, last: float, most: float) -> list[float]:
        """Longest first, none above ``most``."""
        if not last:
            return [most * 0.5**k for k in range(FIRST)]
        last = min(last, most)
        ratio = self.span ** (2 / (self.count - 1))
        found = [last * self.span / ratio**k for k in range(self.count)]
        inside = [r for r in found if r < most]
        return inside if len(inside) == len(found) else [most, *inside]
