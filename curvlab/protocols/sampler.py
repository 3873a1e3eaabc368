"""Samplers: on which examples a step works."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jaxtyping import Int
from torch import Tensor

from curvlab.protocols.evidence import StepOutcome
from curvlab.protocols.needs import GRADIENT_ONLY, Needs

S = TypeVar("S", bound=Any)


@dataclass(frozen=True)
class Draw:
    """Indices into the training examples for three purposes; two may be the same tensor.

    ``micro_batch`` bounds how many examples are in memory at once; the results do not depend on it.
    """

    gradient: Int[Tensor, " n"]
    curvature: Int[Tensor, " m"]
    acceptance: Int[Tensor, " k"]
    micro_batch: int | None = None


class Sampler(ABC, Generic[S]):
    """Draws examples; deterministic given its state."""

    @abstractmethod
    def init(self, size: int, batch_size: int, seed: int) -> S:
        """A fresh state for ``size`` examples; ``batch_size`` is the task's own."""

    @abstractmethod
    def draw(self, state: S) -> Draw:
        """The next draw; moves the state on."""

    def needs(self, state: S) -> Needs:
        """What learning from the next step wants to be evaluated; ``learn`` alone may change the answer."""
        return GRADIENT_ONLY

    def learn(self, state: S, what: StepOutcome) -> None:
        """Take in what came of the step."""
        return None


@dataclass(frozen=True)
class SampleStream(Generic[S]):
    """A sampler at work in a run, with its state."""

    sampler: Sampler[S]
    state: S

    @classmethod
    def of(cls, sampler: Sampler[S], size: int, batch_size: int, seed: int) -> SampleStream[S]:
        """From a fresh state."""
        return cls(sampler, sampler.init(size, batch_size, seed))

    def draw(self) -> Draw:
        """The examples of the next step."""
        return self.sampler.draw(self.state)

    def needs(self) -> Needs:
        """What learning from the next step wants to be evaluated."""
        return self.sampler.needs(self.state)

    def learn(self, what: StepOutcome) -> None:
        """Take in what came of the step."""
        self.sampler.learn(self.state, what)
