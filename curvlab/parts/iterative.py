"""Preconditioner = a Krylov solve of ``C + λI``, itself preconditioned by any other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from curvlab.linalg.compose import Shifted
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.settings import fraction
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Aftermath, Pass, Solve
from curvlab.protocols.krylov import Krylov
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner


@dataclass
class IterativeState:
    """States of the estimate and the inner preconditioner; the next solve's start, if warm."""

    estimate: Any
    inner: Any
    start: BlockVector | None


@dataclass(frozen=True)
class Iterative(Preconditioner[IterativeState]):
    """Solves ``(C + λI) x = g``, exactly up to the solver's stopping rule.

    ``warm_start``: the next solve begins from this fraction of the last solution (from zero after a
    rejected step); 0 begins from zero always.
    """

    estimator: CurvatureEstimator[Any]
    krylov: Krylov
    inner: Preconditioner[Any] | None = None
    warm_start: float = 0.0

    def __post_init__(self) -> None:
        fraction("warm_start", self.warm_start, closed=True)

    def needs(self, step: int) -> Needs:
        own = self.estimator.needs()
        if own.implicit:
            own = own | Needs(products=self.krylov.limit)
        return own if self.inner is None else own | self.inner.needs(step)

    def joins(self, layer: str) -> bool:
        return self.estimator.by_layer or (self.inner is not None and self.inner.joins(layer))

    def refuses(self, block: Block) -> str | None:
        refusal = self.estimator.refuses(block)
        return refusal if refusal or self.inner is None else self.inner.refuses(block)

    def init(self, like: BlockVector, ctx: Context) -> IterativeState:
        return IterativeState(
            estimate=self.estimator.init(like, ctx),
            inner=None if self.inner is None else self.inner.init(like, ctx),
            start=like.zeros_like() if self.warm_start else None,
        )

    def observe(self, state: IterativeState, seen: Pass, ctx: Context) -> None:
        self.estimator.observe(state.estimate, seen, ctx)
        if self.inner is not None:
            self.inner.observe(state.inner, seen, ctx)

    def refresh(self, state: IterativeState, ctx: Context) -> None:
        if self.inner is not None:
            self.inner.refresh(state.inner, ctx)

    def apply(self, state: IterativeState, v: BlockVector, ctx: Context) -> Solve:
        A = Shifted(self.estimator.curvature(state.estimate), ctx.damping)
        inner = self.inner
        M = None if inner is None else lambda r: inner.apply(state.inner, r, ctx).x
        solve = self.krylov.solve(A, v, x0=state.start, M=M)
        # learn reads the solution again, so the transforms after it must not work in place
        return solve if state.start is None else replace(solve, x=solve.x.borrow())

    def learn(self, state: IterativeState, what: Aftermath, ctx: Context) -> None:
        if state.start is not None:
            if what.step.accepted:
                state.start.copy_(what.solve.x).scale_(self.warm_start)
            else:
                state.start.zero_()
        if self.inner is not None:
            self.inner.learn(state.inner, what, ctx)
