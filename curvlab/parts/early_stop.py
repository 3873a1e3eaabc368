"""A callback that ends a run whose training loss no longer falls."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from curvlab.protocols.bounds import Count, NotNegative, check_bounds
from curvlab.protocols.callback import Callback, Notice


@dataclass
class EarlyStopState:
    """Sum and number of this epoch's losses; the best mean so far; epochs since then."""

    total: float = 0.0
    steps: int = 0
    best: float | None = None
    waited: int = 0


@dataclass(frozen=True)
class EarlyStop(Callback[EarlyStopState]):
    """Ends the run after ``patience`` epochs in a row whose mean training loss is not a new best.

    A mean is a new best if it is below the best so far by more than ``threshold``, in units of the loss.  The
    mean is over the steps of an epoch, of the loss before each step with every penalty.  The first epoch is
    always a new best.  Costs nothing.
    """

    patience: Count = 10
    threshold: NotNegative = 1e-3

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, model: nn.Module) -> EarlyStopState:
        return EarlyStopState()

    def stepped(self, state: EarlyStopState, model: nn.Module, loss: float) -> None:
        state.total, state.steps = state.total + loss, state.steps + 1

    def epoch_ended(self, state: EarlyStopState, model: nn.Module, epoch: int) -> tuple[Notice, ...]:
        if not state.steps:  # every batch of the epoch was skipped
            return ()
        mean = state.total / state.steps
        state.total, state.steps = 0.0, 0
        if state.best is None or mean < state.best - self.threshold:
            state.best, state.waited = mean, 0
        else:
            state.waited += 1
        return ()

    def stops(self, state: EarlyStopState) -> str | None:
        if state.waited < self.patience:
            return None
        return (
            f"the training loss has not fallen below {state.best:.6g} by more than {self.threshold:g} in"
            f" {state.waited} epochs"
        )
