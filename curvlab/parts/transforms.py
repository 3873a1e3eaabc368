"""Transforms of gradients and updates: where one stands says what it means."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Fraction, Limit, NotNegative, Positive, check_bounds
from curvlab.protocols.cadence import Interval, is_due
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.step import At, Transform


@dataclass
class AverageState:
    """A moving average, how many vectors it holds, and the sum of their weights before normalization."""

    average: BlockVector
    count: int
    mass: float = 0.0


@dataclass(frozen=True)
class Averaging(Transform[AverageState]):
    """A transform that holds a moving average of what it is given, from zero on."""

    fallible = False
    separable = True

    beta: Fraction = 0.9
    bias_correction: bool = True

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, like: BlockVector) -> AverageState:
        return AverageState(like.zeros_like(), 0)


@dataclass(frozen=True)
class Ema(Averaging):
    """Exponential moving average, normalized by the sum of its weights (Adam's bias correction).

    ``m_t = m_{t−1} + w_t (v − m_{t−1})``, ``w_t = (1 − β)/(1 − βᵗ)``; one pass over memory.  Where β
    changes while training, m stays Adam's: ``s_t = β s_{t−1} + (1 − β) v``, divided by ``1 − βᵗ``.
    Without ``bias_correction`` it is s itself, which begins at zero.
    """

    def __call__(self, state: AverageState, v: BlockVector, at: At) -> BlockVector:
        before, mass = 1 - self.beta**state.count, 1 - self.beta ** (state.count + 1)

        def change(average: BlockVector) -> None:
            if not self.bias_correction:
                average.combine_(self.beta, v, 1 - self.beta)
            elif state.mass == before:
                average.flat.lerp_(v.flat, (1 - self.beta) / mass)
            else:  # β was another one in the last step
                average.combine_(self.beta * state.mass / mass, v, (1 - self.beta) / mass)

        found = at.storage.updated(state.average, change, v.dtype)
        state.count, state.mass = state.count + 1, mass
        return found


@dataclass(frozen=True)
class Momentum(Transform[BlockVector]):
    """Heavy ball: ``m ← β m + v``; the result is m, or ``v + β m`` with ``nesterov``."""

    fallible = False
    separable = True

    beta: Fraction = 0.9
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, like: BlockVector) -> BlockVector:
        return like.zeros_like()

    def __call__(self, state: BlockVector, v: BlockVector, at: At) -> BlockVector:
        m = at.storage.updated(state, lambda m: m.combine_(self.beta, v), v.dtype)
        return v.plus(m, self.beta) if self.nesterov else m


@dataclass(frozen=True)
class WeightDecay(Transform[None]):
    """``v + rate · θ``.

    First on the gradient it is L2 regularization; on the update before momentum it is SINGD's; last
    on the update it is AdamW's (the step rule's rate multiplies it).
    """

    fallible = False
    separable = True

    rate: NotNegative | Schedule = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, like: BlockVector) -> None:
        return None

    def __call__(self, state: None, v: BlockVector, at: At) -> BlockVector:
        rate = at_step(self.rate, at.step)
        if not rate:
            return v
        out = v.owned()
        at.add_theta(out, rate)
        return out


@dataclass(frozen=True)
class Clip(Transform[None]):
    """Scales the whole vector down to Euclidean norm ``norm`` if it is longer."""

    fallible = False
    separable = True

    norm: Limit

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, like: BlockVector) -> None:
        return None

    def __call__(self, state: None, v: BlockVector, at: At) -> BlockVector:
        return v.owned().scale_((self.norm / at.norm(v)).clamp(max=1.0))


@dataclass(frozen=True)
class ClipEntries(Transform[None]):
    """``min(max(v / scale, −1), 1)``, entry by entry: no entry of the result is longer than 1.

    Sophia's bound on an update (Liu et al. 2023, arXiv 2305.14342), where the step's rate is the largest
    change of a parameter.  Not linear: an entry below ``scale`` is in proportion to v, one above is a sign.
    """

    fallible = False
    separable = True

    scale: Positive = 1.0

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, like: BlockVector) -> None:
        return None

    def __call__(self, state: None, v: BlockVector, at: At) -> BlockVector:
        out = v.owned()
        out.flat.div_(self.scale).clamp_(-1.0, 1.0)
        return out


@dataclass(frozen=True)
class NormConstraint(Transform[Tensor]):
    """Bounds the step in the metric of the curvature: ``lr² uᵀ C u ≤ limit``.

    For an update u = (C + λI)⁻¹ g, ``uᵀ(C + λI)u = gᵀu``, so that u is scaled by
    ``ν = min(1, √(limit / (lr² gᵀu)))``; it belongs first on the update, before momentum (the "KL clip";
    Ba, Grosse & Martens 2017).  ν is found on every ``every``-th step and held in between: with the
    refreshes of the curvature, whose changes are what it guards against.  A negative gᵀu is left
    alone.  Without a limit (inf) nothing is computed.  No host sync.
    """

    fallible = False
    separable = True

    limit: Limit = 1e-2
    every: Interval = 1

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, like: BlockVector) -> Tensor:
        return like.flat.new_ones(())

    def __call__(self, state: Tensor, v: BlockVector, at: At) -> BlockVector:
        if self.limit == float("inf"):
            return v
        if is_due(at.step, self.every):
            size = (at.sum(v.dot(at.gradient)) * at.lr**2).clamp(min=torch.finfo(v.dtype).tiny)
            state.copy_((self.limit / size).sqrt().clamp(max=1.0))
        return v.owned().scale_(state)
