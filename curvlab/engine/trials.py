"""Trial losses and gradients of a step's objective along an update."""

from __future__ import annotations

from dataclasses import dataclass, field

from curvlab.engine.rates import ParameterRates
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.line import Line
from curvlab.protocols.objective import Objective
from curvlab.protocols.path import DampedPath

#: the key of the loss at θ: no object has the identity 0
START = (0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Trials(Line):
    """The line of one arm's step; each loss is computed once.

    ``objective`` is ``None`` in a plain loop, where ``NeedsObjective`` refuses parts that make trials.
    """

    rates: ParameterRates
    objective: Objective | None
    seen: Evaluation
    #: losses by identity of the update, which is kept so that no other can take on its identity, and rate;
    #: shared by the copies that a rule makes for another update
    known: dict[tuple[int, float], tuple[BlockVector | None, float]] = field(default_factory=dict, repr=False)

    def start(self) -> float:
        """The loss at θ, evaluated at the first call only."""
        if START not in self.known:
            self.known[START] = None, float(self._objective().start(self.seen))
        return self.known[START][1]

    def loss_of(self, update: BlockVector, alpha: float) -> float:
        """The loss at θ + α · update, evaluated once for each update and rate."""
        key = (id(update), alpha)
        if key not in self.known:
            at = self.rates.tried(update, alpha)
            self.known[key] = update, float(self._objective().loss(at))
        return self.known[key][1]

    def differentiate(
        self, update: BlockVector, alpha: float, *, acceptance: bool = False
    ) -> tuple[float, BlockVector]:
        """Loss and gradient at θ + α · update; a backward pass at every call."""
        at = self.rates.tried(update, alpha)
        loss, gradient = self._objective().differentiate(at, acceptance=acceptance)
        return float(loss), self.rates.blocks.pack(gradient)

    def _objective(self) -> Objective:
        assert self.objective is not None, "trials without an objective are refused before the step"
        return self.objective


class Followed(DampedPath):
    """A path whose solutions are in units of the arm's rate, zero where nothing moves in this step."""

    def __init__(self, base: DampedPath, rates: ParameterRates) -> None:
        self.base, self.rates, self.least = base, rates, base.least

    @property
    def longest(self) -> float:
        return self.base.longest

    def damping(self, radius: float) -> float:
        return self.base.damping(radius)

    def at(self, damping: float) -> BlockVector:
        return self.rates.scaled(self.base.at(damping))

    def predicted(self, damping: float) -> float:
        return self.base.predicted(damping)

    def beside(self, v: BlockVector, share: float, damping: float) -> BlockVector:
        return self.rates.scaled(self.base.beside(v, share, damping))
