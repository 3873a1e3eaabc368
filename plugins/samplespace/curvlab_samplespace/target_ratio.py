"""A trust-region rule that takes the longest step whose reduction ratio is large enough."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Bounds, Count, Inside, Positive, check_bounds
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Needs
from curvlab.protocols.path import DampedPath
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.step import StepRule


@dataclass
class RadiusState:
    """The radius of the last step; 0 before the first."""

    radius: float = 0.0


@dataclass(frozen=True)
class TargetRatio(StepRule[RadiusState]):
    """Steps of length R along ``x(λ)``: the largest R at which actual over predicted reduction is ``target``.

    The ratio is near 1 for short steps and falls as they grow.  From the last step's radius the rule goes outward by
    ``factor`` while the ratio is at least ``target``, or inward while it is not, and then between the two
    radii that it ended at by ``refine`` bisections.  At most ``tries`` trial losses; if none of the radii reduces
    the loss enough, the step is rejected and the next one starts at the smallest.  The target is that
    of the dual-space Gauss–Newton method with adaptive radius (arXiv 2607.02194).  ``lr`` bounds the radius.
    """

    follows: ClassVar[bool] = True

    lr: Positive | Schedule = 1e6
    target: Inside = 0.075
    factor: Annotated[float, Bounds(above=1)] = 2.0
    refine: Count = 2
    tries: Count = 30

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(losses=self.tries)

    def rate(self, step: int) -> float:
        return at_step(self.lr, step)

    def init(self, like: BlockVector) -> RadiusState:
        return RadiusState()

    def search(self, state: RadiusState, line: Line, step: int) -> Step:
        path = line.path
        assert path is not None, "the method refuses preconditioners without a path"
        most = min(self.rate(step) * line.rate, path.longest)
        search = _Search(line, path, self.target)
        radius = min(state.radius or most, most)
        good = self._outward(search, radius, most) if search.good(radius) else self._inward(search, radius)
        if good is None:
            state.radius = search.smallest
            return Step(line.update, 0.0, accepted=False)
        state.radius = good if good < path.longest else max(good, state.radius)
        return Step(search.update(good), 1.0)

    def _outward(self, search: _Search, radius: float, most: float) -> float:
        good = radius
        while good < most and search.count < self.tries:
            wider = min(good * self.factor, most)
            if not search.good(wider):
                return self._between(search, good, wider)
            good = wider
        return good

    def _inward(self, search: _Search, radius: float) -> float | None:
        bad = radius
        while search.count < self.tries:
            narrower = bad / self.factor
            if search.good(narrower):
                return self._between(search, narrower, bad)
            bad = narrower
        return None

    def _between(self, search: _Search, good: float, bad: float) -> float:
        for _ in range(self.refine):
            if search.count >= self.tries:
                break
            middle = math.sqrt(good * bad)
            good, bad = (middle, bad) if search.good(middle) else (good, middle)
        return good


class _Search:
    """Trial losses at radii; each update is made once, and kept for the step."""

    def __init__(self, line: Line, path: DampedPath, target: float) -> None:
        self.line, self.path, self.target = line, path, target
        self.count, self.smallest = 0, math.inf
        self._last: tuple[float, BlockVector] | None = None

    def good(self, radius: float) -> bool:
        """Whether the reduction ratio of a step of this length is at least the target."""
        self.count += 1
        self.smallest = min(self.smallest, radius)
        damping = self.path.damping(radius)
        update = self.path.at(damping)
        actual = self.line.loss_of(update, 1.0) - self.line.start()
        predicted = self.path.predicted(damping)
        found = math.isfinite(actual) and predicted < 0 and actual / predicted >= self.target
        if found:
            self._last = radius, update
        return found

    def update(self, radius: float) -> BlockVector:
        """The update of a radius that was good."""
        assert self._last is not None and self._last[0] == radius, "the last good radius is the one taken"  # noqa: PT018
        return self._last[1]
