"""Preconditioner = a Krylov solve of ``C + λI``, itself preconditioned by any other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.compose import InDtype, Ridged, Shifted
from curvlab.linalg.progress import Iterate
from curvlab.linalg.secants import Which
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Bounds, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation, Solve, StepOutcome
from curvlab.protocols.krylov import Krylov
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab.protocols.schedule import Schedule, at_step


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

    varying = True  # the number of its iterations depends on what it is applied to

    estimator: CurvatureEstimator[Any]
    krylov: Krylov
    inner: Preconditioner[Any] | None = None
    warm_start: Annotated[float, Bounds(least=0, most=1)] | Schedule = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.inner is not None and self.inner.varying and not self.krylov.varying:
            inner, krylov = type(self.inner).__name__, type(self.krylov).__name__
            raise ConfigError(
                Fault(
                    f"inner = {inner} changes during a solve, and krylov = {krylov} needs one that does not",
                    path="krylov",
                    hint='use krylov = "flexible-cg"',
                )
            )
        pairs = None if self.inner is None else self.inner.pairs()
        if pairs is not None and pairs.which is Which.ALL and pairs.count < self.krylov.limit:
            raise ConfigError(
                Fault(
                    f"inner is set to keep all pairs of a solve, but has room for {pairs.count}, and krylov"
                    f" makes up to {self.krylov.limit}",
                    path="inner",
                    hint=f"set its memory to {self.krylov.limit} (two vectors each), or select fewer pairs",
                )
            )

    def needs(self, step: int) -> Needs:
        own = self.estimator.needs()
        if own.implicit:
            own = own | Needs(products=self.krylov.limit)
        return own if self.inner is None else own | self.inner.needs(step)

    @property
    def iterates(self) -> bool:
        return self.krylov.iterates

    @property
    def ridged(self) -> bool:
        return True

    def joins(self, layer: str) -> bool:
        return self.estimator.by_layer or (self.inner is not None and self.inner.joins(layer))

    def refuses(self, block: Block) -> str | None:
        refusal = self.estimator.refuses(block)
        return refusal if refusal or self.inner is None else self.inner.refuses(block)

    def settled(self, blocks: Sequence[Block]) -> Iterative:
        return self if self.inner is None else replace(self, inner=self.inner.settled(blocks))

    def init(self, like: BlockVector, ctx: Context) -> IterativeState:
        return IterativeState(
            estimate=self.estimator.init(like, ctx),
            inner=None if self.inner is None else self.inner.init(like, ctx),
            start=ctx.zeros(like, "work") if self.warm_start != 0 else None,
        )

    def observe(self, state: IterativeState, seen: Evaluation, ctx: Context) -> None:
        self.estimator.observe(state.estimate, seen, ctx)
        if self.inner is not None:
            self.inner.observe(state.inner, seen, ctx)

    def ready(self, state: IterativeState) -> bool:
        return self.inner is None or self.inner.ready(state.inner)

    def refresh(self, state: IterativeState, ctx: Context) -> None:
        if self.inner is not None:
            self.inner.refresh(state.inner, ctx)

    def apply(self, state: IterativeState, v: BlockVector, ctx: Context) -> Solve:
        """Solves ``(C + λI) x = v`` from ``start``, preconditioned by ``inner``."""
        C = self.estimator.curvature(state.estimate)
        if ctx.ridge and not self.estimator.needs().implicit:  # the products of the objective hold it already
            C = Ridged(C, ctx.ridge)
        factors = ctx.backend.dtypes.factors
        A = Shifted(C if factors == v.dtype else InDtype(C, factors), ctx.damping)
        inner = self.inner
        M = None if inner is None else lambda r: inner.apply(state.inner, r, ctx).x
        pairs = None if inner is None else inner.pairs()
        solve = self.krylov.solve(A, v, x0=state.start, M=M, pairs=pairs)
        # learn reads the solution again, so the transforms after it must not work in place
        x = solve.x if state.start is None else solve.x.borrow()
        iterates = tuple(_undamped(i, ctx.damping) for i in solve.iterates)
        if iterates:  # the last of them is the solution, as whoever compares them may rely on
            iterates = (*iterates[:-1], replace(iterates[-1], x=x))
        secants = tuple(replace(pair, damping=ctx.damping) for pair in solve.secants)
        return replace(solve, x=x, iterates=iterates, secants=secants)

    def learn(self, state: IterativeState, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        """The next solve starts from ``warm_start`` times this solution; from 0 if the step was rejected."""
        if state.start is not None:
            if what.step.accepted:
                state.start.copy_(what.solve.x).scale_(at_step(self.warm_start, ctx.step))
            else:
                state.start.zero_()
        return () if self.inner is None else self.inner.learn(state.inner, what, ctx)


def _undamped(i: Iterate, damping: float) -> Iterate:
    """An iterate with the curvature of ``C + damping · I``, made to have that of C."""
    return replace(i, curvature=i.curvature - damping * float(i.x.dot(i.x)))
