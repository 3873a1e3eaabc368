"""Step rules: how far along an update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from curvlab.linalg import factorizations
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import (
    Count,
    Fraction,
    Inside,
    Natural,
    NotNegative,
    Positive,
    check_bounds,
)
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Needs
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.step import StepRule


@dataclass(frozen=True)
class Rate(StepRule[None]):
    """α = lr: a number or a schedule."""

    separable = True
    prescribed = True

    lr: NotNegative | Schedule

    def __post_init__(self) -> None:
        check_bounds(self)

    def rate(self, step: int) -> float:
        return at_step(self.lr, step)

    def init(self, like: BlockVector) -> None:
        return None

    def search(self, state: None, line: Line, step: int) -> Step:
        return Step(line.update, self.rate(step) * line.rate)


@dataclass(frozen=True)
class Armijo(StepRule[None]):
    """Backtracking: the first α of lr, lr·shrink, lr·shrink², … with enough decrease.

    Enough is ``L(θ − αu) ≤ L(θ) + slope · α · L'(0)``.  After ``tries`` failures, or along an update
    that does not descend, the step is rejected and nothing moves.
    """

    lr: Positive | Schedule = 1.0
    slope: Fraction = 1e-4
    shrink: Inside = 0.5
    tries: Count = 20

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(losses=self.tries)

    def rate(self, step: int) -> float:
        return at_step(self.lr, step)

    def init(self, like: BlockVector) -> None:
        return None

    def search(self, state: None, line: Line, step: int) -> Step:
        if not line.slope < 0:
            return Step(line.update, 0.0, accepted=False)
        start, alpha = line.start(), self.rate(step) * line.rate
        for _ in range(self.tries):
            if line.loss_of(line.update, alpha) <= start + self.slope * alpha * line.slope:
                return Step(line.update, alpha)
            alpha *= self.shrink
        return Step(line.update, 0.0, accepted=False)


@dataclass
class GridState:
    """Where on the grid the last step was found."""

    last: int = 0


@dataclass(frozen=True)
class Grid(StepRule[GridState]):
    """The best of ``count`` rates lr, lr·shrink, lr·shrink², …; none that lowers the loss, no step.

    No slope is asked for, and the update need not descend at first order.  Costs ``count`` trial losses, or,
    with ``near``, three or four mostly.  It then begins at the last step's place on the grid and goes to the
    neighbor with the lower loss as long as there is one.  The whole grid is tried only if that does not lower
    the loss.
    """

    lr: Positive | Schedule = 1.0
    shrink: Inside = 0.5
    count: Count = 31
    near: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(losses=self.count)

    def rate(self, step: int) -> float:
        return at_step(self.lr, step)

    def init(self, like: BlockVector) -> GridState:
        return GridState()

    def search(self, state: GridState, line: Line, step: int) -> Step:
        first = self.rate(step) * line.rate

        @cache
        def loss(k: int) -> float:
            if not 0 <= k < self.count:
                return math.inf
            found = line.loss_of(line.update, first * self.shrink**k)
            return found if math.isfinite(found) else math.inf

        k = self._walk(state.last, loss) if self.near else -1
        if not loss(k) < line.start():
            k = min(range(self.count), key=loss)
        if not loss(k) < line.start():
            return Step(line.update, 0.0, accepted=False)
        state.last = k
        return Step(line.update, first * self.shrink**k)

    @staticmethod
    def _walk(k: int, loss: Callable[[int], float]) -> int:
        """The first place from k on, towards the lower neighbor, that is no worse than both of its own."""
        way = -1 if loss(k - 1) < loss(k) else 1
        while loss(k + way) < loss(k):
            k += way
        return k


@dataclass
class QuadraticState:
    """The last step's displacement, subtracted form: θ_k = θ_{k−1} − previous."""

    previous: BlockVector | None


@dataclass(frozen=True)
class QuadraticModel(StepRule[QuadraticState]):
    """Rate and momentum from the damped quadratic model (Martens & Grosse 2015, §7; specs 6.5).

    Minimizes ``−gᵀδ + ½ δᵀ(G + λI)δ`` over δ ∈ span{update, previous δ} (the update alone without
    ``momentum``) and subtracts ``lr · δ``.  Two GGN products a step, or one.  A model that is not
    finite or not positive rejects the step.

    With ``tries`` the rate is the first of lr, lr/2, lr/4, … that lowers the loss; if none of so many does,
    the step is rejected and the next one has no momentum.  This costs one trial loss in most steps. ``damped
    = false`` leaves λ out of the model: for updates whose λ is not that of ``G + λI``, such as those of
    factors that are damped one by one.
    """

    lr: Positive | Schedule = 1.0
    momentum: bool = True
    tries: Natural = 0
    damped: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(products=2 if self.momentum else 1, losses=self.tries)

    def rate(self, step: int) -> float:
        return at_step(self.lr, step)

    def init(self, like: BlockVector) -> QuadraticState:
        return QuadraticState(like.zeros_like() if self.momentum else None)

    def search(self, state: QuadraticState, line: Line, step: int) -> Step:
        update = self._minimizer(state, line)
        if update is None:
            return Step(line.update, 0.0, accepted=False)
        alpha = self.rate(step) * line.rate
        if self.tries:
            rates = [alpha * 0.5**k for k in range(self.tries)]
            lower = next((a for a in rates if line.loss_of(update, a) < line.start()), None)
            alpha = 0.0 if lower is None else lower
        if state.previous is not None:
            state.previous.copy_(update).scale_(alpha)
        if self.tries and not alpha:
            return Step(line.update, 0.0, accepted=False)
        return Step(update, alpha)

    def _minimizer(self, state: QuadraticState, line: Line) -> BlockVector | None:
        """δ, or ``None`` if the model has no finite minimum."""
        assert line.ggn is not None
        basis = [line.update]
        if state.previous is not None and float(state.previous.norm()) > 0:
            basis.append(state.previous)
        damping = line.damping if self.damped else 0.0
        products = [(line.ggn @ u).add_(u, damping) for u in basis]
        M = torch.tensor(
            [[float(u.dot(p)) for p in products] for u in basis], dtype=torch.float64, device="cpu"
        )
        b = torch.tensor([float(line.gradient.dot(u)) for u in basis], dtype=torch.float64, device="cpu")
        if not bool(torch.isfinite(M).all()) or not bool(torch.isfinite(b).all()) or not M[0, 0] > 0:
            return None
        scale = M.diagonal().sqrt()  # both directions at unit curvature: lstsq then sees the angle alone
        unit = factorizations.least_squares(M / torch.outer(scale, scale), b / scale)
        weights = unit / scale
        update = line.update * float(weights[0])
        if len(basis) == 2:
            update.add_(basis[1], float(weights[1]))
        return update if math.isfinite(float(update.norm())) else None
