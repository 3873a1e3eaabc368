"""A line given by functions, for tests of step rules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.line import Line


def _no_trial(*arguments: Any, **more: Any) -> Any:
    raise AssertionError("the rule makes a trial that the test does not expect")


@dataclass(frozen=True, kw_only=True)
class FunctionLine(Line):
    """``losses(u, α)`` is the loss at θ − α·u, ``gradients(u, α)`` loss and gradient there.

    Neither may be called where it is not given.  The loss at θ is ``loss`` on both samples.
    """

    losses: Callable[[BlockVector, float], float] = _no_trial
    gradients: Callable[[BlockVector, float], tuple[float, BlockVector]] = _no_trial

    def start(self) -> float:
        return self.loss

    def loss_of(self, update: BlockVector, alpha: float) -> float:
        return self.losses(update, alpha)

    def differentiate(
        self, update: BlockVector, alpha: float, *, acceptance: bool = False
    ) -> tuple[float, BlockVector]:
        return self.gradients(update, alpha)
