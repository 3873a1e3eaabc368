"""A line search for the strong Wolfe conditions, by cubic interpolation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Bounds, Count, Inside, Positive, check_bounds
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Needs
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.step import StepRule

#: of L(θ): a loss is not known better than this many units in the last place
NOISE = 4.0
#: a trial stays this fraction of the bracket away from its ends; and goes this far into one whose far end
#: is not finite
MARGIN = 0.1
#: without a far end, the next trial is this much to ten times as far again as the last step between trials
ONWARD = (0.1, 9.0)


@dataclass(frozen=True)
class StrongWolfe(StepRule[None]):
    """The α at which ``L(θ − αu) ≤ L(θ) + c1 α L'(0)`` and ``|L'(α)| ≤ c2 |L'(0)|``, L' being dL/dα.

    Begins at lr, brackets and zooms (Nocedal and Wright 2006, algorithms 3.5 and 3.6).  Loss and slope are
    of the gradient sample; a trial costs one gradient.  A loss or slope that is not finite counts as too
    far.  Changes of the loss below its rounding (4 units in the last place) are not believed: there the
    slopes decide alone (Hager and Zhang 2005), and the loss may rise by as much.

    After ``tries`` trials the lowest of those that meet the first condition is taken; if there is none, or
    the update does not descend, the step is rejected.

    ``Step.gradient`` is the gradient arrived at.  On the same examples the next step begins with it instead
    of evaluating it again: half of the gradients where the first trial is taken.  Examples are compared by
    their numbers, model and criterion by identity, mode, buffers and plain attributes; a function that draws
    random numbers, changes buffers or runs on several processes is evaluated in every step.  Set
    ``reuse = False`` for a criterion or model that depends on something else, such as a global variable.
    Holds one vector.
    """

    lr: Positive | Schedule = 1.0  #: the first α, > 0
    c1: Annotated[float, Bounds(above=0, most=0.5)] = 1e-4  #: enough decrease, in (0, 1/2]
    c2: Inside = 0.9  #: enough flattening, in (c1, 1); small makes the search exact
    tries: Count = 25  #: most trials, ≥ 1
    #: begin the next step with the gradient that this one arrived at, on the same examples
    reuse: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)
        if not self.c1 < self.c2:
            what = f"c2 = {self.c2!r} must be above c1 = {self.c1!r}"
            raise ConfigError(Fault(what, path="c2"))

    def needs(self, step: int) -> Needs:
        return Needs(gradients=self.tries)

    @property
    def carries_gradient(self) -> bool:
        return self.reuse

    def rate(self, step: int) -> float:
        return at_step(self.lr, step)

    def init(self, like: BlockVector) -> None:
        return None

    def search(self, state: None, line: Line, step: int) -> Step:
        start, alpha = Trial(0.0, line.loss, line.slope), self.rate(step) * line.rate
        if not (start.finite and start.slope < 0 and 0 < alpha < math.inf):
            return Step(line.update, 0.0, accepted=False)
        return _Search(self, line, start).run(alpha)


@dataclass(frozen=True)
class Trial:
    """Loss and slope at one α."""

    alpha: float
    loss: float
    slope: float

    @property
    def finite(self) -> bool:
        """Whether both are."""
        return math.isfinite(self.loss) and math.isfinite(self.slope)


class _Search:
    """One search under way: the lowest trial so far, with its gradient, and how many are left."""

    def __init__(self, rule: StrongWolfe, line: Line, start: Trial) -> None:
        self.rule, self.line, self.start = rule, line, start
        self.noise = NOISE * torch.finfo(line.update.dtype).eps * abs(start.loss)
        self.best: tuple[Trial, BlockVector] | None = None

    def run(self, alpha: float) -> Step:
        """Search from ``alpha`` on.  ``low`` is the end to go on from; ``high``, once known, too far."""
        low, high, before = self.start, None, self.start
        for _ in range(self.rule.tries):
            trial, gradient = self._try(alpha)
            if self._is_flat(trial):
                return self._step(trial, gradient)
            if self._decreased(trial) and trial.loss < (self.best or (self.start,))[0].loss:
                self.best = trial, gradient
            toward = 1.0 if high is None else high.alpha - low.alpha
            if self._is_too_far(trial, low, toward):
                high = trial
            else:
                before = low
                if trial.slope * toward >= 0:
                    high = low
                low = trial
            alpha = _between(low, high, self.noise) if high is not None else _onward(before, low, self.noise)
            if not math.isfinite(alpha) or alpha in (low.alpha, high and high.alpha):
                break  # there is no number left in between
        return Step(self.line.update, 0.0, accepted=False) if self.best is None else self._step(*self.best)

    def _try(self, alpha: float) -> tuple[Trial, BlockVector]:
        loss, gradient = self.line.differentiate(self.line.update, alpha)
        return Trial(alpha, loss, -float(gradient.dot(self.line.update))), gradient

    def _step(self, trial: Trial, gradient: BlockVector) -> Step:
        return Step(self.line.update, trial.alpha, gradient=gradient, loss=trial.loss)

    def _decreased(self, t: Trial) -> bool:
        """The first condition; false of what is not finite."""
        return t.finite and t.loss <= self.start.loss + self.rule.c1 * t.alpha * self.start.slope

    def _is_flat(self, t: Trial) -> bool:
        """Both conditions, the first up to rounding."""
        low = self._decreased(t) or t.loss <= self.start.loss + self.noise
        return t.finite and low and abs(t.slope) <= -self.rule.c2 * self.start.slope

    def _is_too_far(self, t: Trial, low: Trial, toward: float) -> bool:
        """Whether a point that meets both conditions lies between ``low`` and ``t``."""
        if not t.finite:
            return True
        if self._decreased(t) and t.loss < low.loss:
            return False
        # as low as makes no difference, and still falling: rounding alone says that it is too far
        level = t.loss <= min(low.loss, self.start.loss) + self.noise
        return not (level and t.slope * toward < 0)


def _onward(a: Trial, b: Trial, noise: float) -> float:
    """The next α beyond b, the trial after a."""
    least, most = (b.alpha + times * (b.alpha - a.alpha) for times in ONWARD)
    guess = _minimizer(a, b, noise)
    return most if guess is None else min(max(guess, least), most)


def _between(low: Trial, high: Trial, noise: float) -> float:
    """The next α between the two, away from both."""
    width = high.alpha - low.alpha
    if not high.finite:
        return low.alpha + MARGIN * width
    guess = _minimizer(low, high, noise)
    share = 0.5 if guess is None else (guess - low.alpha) / width
    return low.alpha + min(max(share, MARGIN), 1 - MARGIN) * width


def _minimizer(a: Trial, b: Trial, noise: float) -> float | None:
    """Where the cubic through both trials and their slopes has its minimum; ``None`` if it has none.

    If their losses differ by rounding alone, where the line through the slopes is zero.
    """
    width = b.alpha - a.alpha
    if abs(b.loss - a.loss) <= noise:
        bend = (b.slope - a.slope) / width
        return a.alpha - a.slope / bend if bend > 0 else None
    d1 = a.slope + b.slope - 3 * (a.loss - b.loss) / (a.alpha - b.alpha)
    inside = d1 * d1 - a.slope * b.slope
    if not 0 <= inside < math.inf:
        return None
    d2 = math.copysign(math.sqrt(inside), width)
    under = b.slope - a.slope + 2 * d2
    return b.alpha - width * (b.slope + d2 - d1) / under if under else None
