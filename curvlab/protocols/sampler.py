"""Samplers: on which examples a step works."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from jaxtyping import Int
from torch import Tensor

from curvlab.protocols.evidence import Aftermath

S = TypeVar("S", bound=Any)


@dataclass(frozen=True)
class Draw:
    """Indices into the training examples for three purposes; two may be the same tensor."""

    gradient: Int[Tensor, " n"]
    curvature: Int[Tensor, " m"]
    acceptance: Int[Tensor, " k"]


class Sampler(ABC, Generic[S]):
    """Draws examples; deterministic given its state."""

    @abstractmethod
    def init(self, size: int, batch_size: int, seed: int) -> S:
        """A fresh state for ``size`` examples; ``batch_size`` is the task's own."""

    @abstractmethod
    def draw(self, state: S) -> Draw:
        """The next draw; moves the state on."""

    def learn(self, state: S, what: Aftermath) -> None:
        """Take in what came of the step."""
        return None
