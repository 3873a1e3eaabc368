"""Averages of weights: what is evaluated in place of the weights that are trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

S = TypeVar("S", bound=Any)

#: parameters by name, as in ``model.named_parameters()``; a complex one as pairs of reals
Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Taken:
    """A step that was taken: its number (from 0), its rate, and how much of the budget was used up before it.

    ``used`` is between 0 and 1; ``None`` in a loop of the user's own, which has no budget.
    """

    step: int
    lr: float
    used: float | None = None


class Average(ABC, Generic[S]):
    """An average of the weights that a method goes through.

    It works around whatever method trains.  States are in float32 at least, whatever the parameters are in:
    in bfloat16 a small change of a mean is lost.

    ``moves``: whether ``stepped`` writes the parameters, so that the next gradient is taken elsewhere.
    """

    moves: ClassVar[bool] = False

    @property
    def needs_budget(self) -> bool:
        """Whether it must know how much of a run's budget is used up."""
        return False

    @abstractmethod
    def init(self, theta: Weights) -> S:
        """A fresh state, with every tensor that it will hold; it copies what it keeps of ``theta``."""

    @abstractmethod
    def stepped(self, state: S, theta: Weights, taken: Taken) -> None:
        """The method has taken a step, to ``theta``, which one that ``moves`` may write."""

    @abstractmethod
    def weights(self, state: S, theta: Weights) -> Weights:
        """The averaged weights by name, to be read at once; changes neither the state nor ``theta``."""
