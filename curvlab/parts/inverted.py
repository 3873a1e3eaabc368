"""Preconditioner = curvature estimator + inverse, each on a cadence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import check_bounds
from curvlab.protocols.cadence import Interval, is_due
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import HeldCurvature, Inverse, Preconditioner


@dataclass
class InvertedState:
    """The estimate changes on every observing step, the inverse on every refreshing one."""

    estimate: Any
    inverse: LinearOperator[BlockVector]


@dataclass(frozen=True)
class Inverted(Preconditioner[InvertedState]):
    """``x = inverse(C + λI) g``: C observed every ``observe_every`` steps, inverted every ``refresh_every``.

    Both begin with step 0.  Between refreshes a layer's gradient may stay factored.
    """

    estimator: CurvatureEstimator[Any]
    inverse: Inverse
    observe_every: Interval = 1
    refresh_every: Interval = 1

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        """The estimator's needs in the steps that observe, nothing beside the gradient in others."""
        keep = Needs(factored=self.estimator.by_layer)
        return self.estimator.needs() | keep if is_due(step, self.observe_every) else keep

    @property
    def separable(self) -> bool:
        return self.estimator.separable and self.inverse.separable

    def work(self, block: Block) -> float:
        return self.estimator.work(block)

    @property
    def ridged(self) -> bool:
        return self.inverse.ridged

    def joins(self, layer: str) -> bool:
        return self.estimator.by_layer

    def refuses(self, block: Block) -> str | None:
        return self.estimator.refuses(block)

    def fallible(self, state: InvertedState, step: int) -> bool:
        return is_due(step, self.observe_every) or is_due(step, self.refresh_every)

    def init(self, like: BlockVector, ctx: Context) -> InvertedState:
        estimate = self.estimator.init(like, ctx)
        return InvertedState(estimate, self.inverse.init(self.estimator.curvature(estimate)))

    def observe(self, state: InvertedState, seen: Evaluation, ctx: Context) -> None:
        if is_due(ctx.step, self.observe_every):
            self.estimator.observe(state.estimate, seen, ctx)

    def refresh(self, state: InvertedState, ctx: Context) -> None:
        if is_due(ctx.step, self.refresh_every):
            state.inverse = self.inverse(self.estimator.curvature(state.estimate), ctx)

    def curvature(self, state: InvertedState) -> HeldCurvature | None:
        """The estimate that is observed, without damping; ``None`` where it is not by block."""
        C = self.estimator.curvature(state.estimate)
        if not isinstance(C, BlockDiagonal):
            return None
        return HeldCurvature(C.blocks, self.estimator.observed(state.estimate))

    def apply(self, state: InvertedState, v: BlockVector, ctx: Context) -> Solve:
        return Solve(ctx.product(state.inverse, v, "factors"))
