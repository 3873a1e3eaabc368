"""Averages of weights that follow the trained ones: exponential, and of the end of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.linalg.work import work_dtype
from curvlab.protocols.average import Average, Taken, Weights
from curvlab.protocols.bounds import Fraction, Natural, Portion, Share, check_bounds


@dataclass
class MeanState:
    """The mean by parameter, in float32 at least, and how many steps it holds."""

    mean: dict[str, Tensor]
    count: int = 0


def wide_copy(theta: Weights) -> dict[str, Tensor]:
    """A copy of every parameter, in float32 at least."""
    return {n: t.detach().to(work_dtype(t.dtype), copy=True) for n, t in theta.items()}


def lerp_(mean: Mapping[str, Tensor], theta: Weights, share: float) -> None:
    """mean ← mean + share · (theta − mean), in the dtype of the mean."""
    for name, m in mean.items():
        m.lerp_(theta[name].to(m.dtype), share)


@dataclass(frozen=True)
class WeightEma(Average[MeanState]):
    """Exponential moving average: ``m ← decay · m + (1 − decay) · θ`` after every step; m is θ after the
    first.

    That of ``torch.optim.swa_utils.AveragedModel`` with ``get_ema_multi_avg_fn(decay)``.  It looks back over
    about 1 / (1 − decay) steps.  Holds one vector of weights in float32 at least; costs a pass over it a
    step.
    """

    decay: Fraction = 0.999

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, theta: Weights) -> MeanState:
        return MeanState(wide_copy(theta))

    def stepped(self, state: MeanState, theta: Weights, taken: Taken) -> None:
        lerp_(state.mean, theta, 1 - self.decay if state.count else 1.0)
        state.count += 1

    def weights(self, state: MeanState, theta: Weights) -> Weights:
        return state.mean


@dataclass(frozen=True)
class TailEma(Average[MeanState]):
    """An exponential moving average of the last part of a run, mixed with the trained weights.

    It begins with the first step before which the part ``start`` of the budget is used up, or with step
    ``start_step``, counted from 0, where that is given; a loop of one's own, which has no budget, needs it.
    The averaged weights are ``(1 − share) · θ + share · m``; before the beginning, they are θ.

    Holds one vector of weights in float32 at least; costs a pass over it a step, from the beginning on.
    Source: tail EMA of the modded-nanogpt records, track 3 (2026): there decay 1 − 1/150 from 83 % on, share
    0.6.
    """

    decay: Fraction = 0.99
    start: Portion = 0.8  #: part of the budget after which it begins
    start_step: Natural | None = None  #: the step with which it begins, instead of ``start``
    share: Share = 1.0  #: weight of the mean beside the trained weights

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def needs_budget(self) -> bool:
        return self.start_step is None

    def init(self, theta: Weights) -> MeanState:
        return MeanState(wide_copy(theta))

    def stepped(self, state: MeanState, theta: Weights, taken: Taken) -> None:
        if not state.count and not self._begins(taken):
            return
        lerp_(state.mean, theta, 1 - self.decay if state.count else 1.0)
        state.count += 1

    def weights(self, state: MeanState, theta: Weights) -> Weights:
        if not state.count:
            return theta
        return {n: torch.lerp(theta[n].to(m.dtype), m, self.share) for n, m in state.mean.items()}

    def _begins(self, taken: Taken) -> bool:
        if self.start_step is not None:
            return taken.step >= self.start_step
        assert taken.used is not None, "refused where there is no budget"
        return taken.used >= self.start
