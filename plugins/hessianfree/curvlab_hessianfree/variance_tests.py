"""Rules that ask whether the gradient sample is large enough: tests of its variance."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, ClassVar

from curvlab.errors import UnsupportedEvidence
from curvlab.protocols.bounds import Bounds, Positive, Share
from curvlab.protocols.cadence import is_due
from curvlab.protocols.evidence import StepOutcome, Variance
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab_hessianfree.growing import Growing, GrowingState
from curvlab_hessianfree.portion import whole


def passing_size(variance: float, bound: float, population: int | None = None) -> float:
    """The size B from which on the variance of a sample's mean is within ``bound``.

    ``variance`` is that of one draw.  The mean of B of infinitely many has ``variance / B``; drawn
    without replacement from a ``population`` of N it has ``variance / B · (N − B)/(N − 1)``, which is
    ``bound`` at ``B = variance · N / (bound · (N − 1) + variance)``.  Not rounded; ∞ (or N) if the bound
    is 0, and 0 if the variance is.
    """
    if variance <= 0:
        return 0.0
    if population is None:
        return variance / bound if bound > 0 else math.inf
    return variance * population / (bound * (population - 1) + variance)


@dataclass(frozen=True, kw_only=True)
class VarianceTest(Growing):
    """Grows the gradient sample when its gradient is too uncertain, to the size at which it would not be.

    Tested every ``interval`` steps, until the sample is as large as it can be; other steps cost nothing.
    ``theta``: the larger, the more uncertainty is allowed.  ``finite_population`` counts that a mean over
    nearly all examples is nearly exact; without it they are taken to be a few of infinitely many.
    ``max_growth`` bounds the factor of one change.  The curvature sample is ``curvature_ratio`` of the
    gradient sample.  A variance or gradient that is not finite changes nothing.
    """

    least: ClassVar[int] = 2  # one example has no variance

    theta: Positive = 0.5
    finite_population: bool = True
    max_growth: Annotated[float, Bounds(least=1)] = 2.0
    curvature_ratio: Share = 0.1
    nested: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()

    @abstractmethod
    def suggested(self, variance: Variance, square: float, population: int | None) -> float:
        """The size that passes, for a gradient of squared norm ``square``; not rounded."""

    def curvature_for(self, gradient: int, pool: int) -> int:
        return max(1, round(self.curvature_ratio * gradient))

    def needs(self, state: GrowingState) -> Needs:
        return Needs(variance=True) if self._due(state) else GRADIENT_ONLY

    def learn(self, state: GrowingState, what: StepOutcome) -> None:
        due = self._due(state)
        state.lessons += 1
        if not due:
            return
        seen = what.before
        if seen.variance is None:
            raise UnsupportedEvidence(
                type(self).__name__,
                "",
                "the variance of the gradients of single examples",
                "none",
                'the objective of this task does not compute it; use another sampler, such as "geometric"',
            )
        square = float(seen.gradient.dot(seen.gradient))
        population = self.pool(state) if self.finite_population else None
        size = self.suggested(seen.variance, square, population)
        if math.isfinite(square) and not math.isnan(size):
            size = min(size, self.max_growth * seen.examples, self.pool(state))
            gradient = min(max(state.gradient, whole(size)), self.most(state))
            self.resize(state, gradient, self.curvature_for(gradient, self.pool(state)))

    def _due(self, state: GrowingState) -> bool:
        return is_due(state.lessons, self.interval) and state.gradient < self.most(state)


@dataclass(frozen=True, kw_only=True)
class NormTest(VarianceTest):
    """Passes if the gradient's expected error is at most ``theta`` times its norm.

    ``Var₁ / B · (N − B)/(N − 1) ≤ θ² ‖g‖²``, with Var₁ the variance of the gradients of single examples,
    summed over coordinates, B of N examples in the sample, and g its gradient.

    Source: Byrd, Chin, Nocedal and Wu 2012, Sample size selection in optimization methods for machine
    learning (dynamic sample gradient algorithm).
    """

    def suggested(self, variance: Variance, square: float, population: int | None) -> float:
        return passing_size(float(variance.total), self.theta**2 * square, population)


@dataclass(frozen=True, kw_only=True)
class InnerProductTest(VarianceTest):
    """Passes if the sample's gradient points downhill for the whole data, but for ``theta``.

    ``Var(⟨g_i, g⟩) / B · (N − B)/(N − 1) ≤ θ² ‖g‖⁴``: weaker than the norm test, so samples grow later.
    ``orthogonality`` ν, if given, bounds what is left out of this, the variance across g, by
    ``ν² ‖g‖²``: ``Var₁ − Var(⟨g_i, g⟩)/‖g‖²`` is that of single examples.

    Source: Bollapragada, Byrd and Nocedal 2017, Adaptive sampling strategies for stochastic
    optimization, arXiv 1710.11258.
    """

    theta: Positive = 0.9
    orthogonality: Positive | None = None

    def suggested(self, variance: Variance, square: float, population: int | None) -> float:
        along = float(variance.along)
        size = passing_size(along, (self.theta * square) ** 2, population)
        if self.orthogonality is None or square == 0:
            return size
        across = float(variance.total) - along / square
        return max(size, passing_size(across, self.orthogonality**2 * square, population))
