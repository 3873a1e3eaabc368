"""A sampler that passes on what it learns, and may need more than gradients; it draws nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from curvlab.protocols.evidence import StepOutcome
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.protocols.sampler import Draw, Sampler, SampleStream


@dataclass(frozen=True)
class Listening(Sampler[None]):
    """``heard`` is called with the outcome of every step."""

    heard: Callable[[StepOutcome], object]
    wanted: Needs = GRADIENT_ONLY

    def init(self, size: int, batch_size: int, seed: int) -> None:
        return None

    def draw(self, state: None) -> Draw:
        raise AssertionError("the tests that use this make their own objectives")

    def needs(self, state: None) -> Needs:
        return self.wanted

    def learn(self, state: None, what: StepOutcome) -> None:
        self.heard(what)


def listening(heard: Callable[[StepOutcome], object], wanted: Needs = GRADIENT_ONLY) -> SampleStream[None]:
    """The sampler at work."""
    return SampleStream(Listening(heard, wanted), None)
