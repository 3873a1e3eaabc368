"""L-BFGS as a preconditioner: fed by the steps that were taken, or by the solves that it preconditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.secants import Pairs, Which
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Count, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, StepOutcome
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab_lbfgs.initial import Initial, InitialState
from curvlab_lbfgs.inverse import Weights, around, in_two_sweeps, weights
from curvlab_lbfgs.memory import Memory, begin, complete, empty, forget, learn


class Source(str, Enum):
    """What the pairs are made of."""

    STEPS = "steps"  #: steps taken, and how much they changed the gradient
    SOLVE = "solve"  #: a Krylov solver's directions, and their products with its operator

    def __str__(self) -> str:
        return self.value


@dataclass
class LbfgsState:
    """Changed by ``learn``, and by an ``observe`` that sees the gradient a step led to."""

    memory: Memory
    initial: InitialState | None = None  #: of H₀, where it is a part
    start: float = 1.0  #: H₀ = start · I while there is no pair
    ready: Weights | None = field(default=None, metadata={"transient": True})


@dataclass(frozen=True)
class Lbfgs(Preconditioner[LbfgsState]):
    """``v ↦ H v``, H being what BFGS makes of the kept pairs from ``H₀ = γI``, γ = sᵀy / yᵀy of the newest.

    λ is added to the curvature: a pair that was taken at λ' serves as ``(s, y + (λ − λ') s)``, which is
    exact for the same C; the pairs of steps are of λ' = 0.  A pair with ``sᵀy ≤ ε ‖s‖ ‖y‖`` is left out
    (ε = 1e-10 in float64, 1e-6 in float32), so H is positive definite.

    ``source = "steps"``: s is the last step, y the change of the gradient.  It is on the same examples if the
    step rule knows the gradient where it arrived (``strong-wolfe`` does).  Else it is that of the next
    gradient, which on mini-batches has other examples; then only the rule above guards.  With no pair, H₀ is
    ``min(1, 1/‖g‖)``: a first update no longer than 1, for the step rule to lengthen.  A rejected step
    empties the memory (event ``memory-reset``), so that the next update is along the gradient.

    ``source = "solve"``: inside ``iterative``, as its ``inner``.  The pairs of one solve replace those of the
    solve before, or with ``running`` only the oldest of them; a solve that has none to offer leaves them as
    they are.  The first is not preconditioned.

    ``initial``: H₀ is this preconditioner's image, such as KFAC's, on the blocks it treats, and γI on the
    others, γ being of their part of the newest pair.  Its λ is the step's.

    Treats every parameter.  Applying costs 4·m·D multiply-adds and one vector (with ``initial`` what that
    costs, too).  Holds 2m vectors, 2m + 2 for ``steps``, and 2m² + 2m scalars (m + 1 for m then).  Nocedal
    1980; Morales and Nocedal 2000; Sainath et al. 2013 (arXiv 1309.1508).
    """

    memory: Count = 16  #: m, pairs kept, ≥ 1
    source: Source = Source.STEPS
    #: which pairs of a solve; ``all`` needs a memory for as many as the solver makes.  Of steps the last
    select: Which = Which.LAST
    running: bool = False  #: keep pairs of earlier solves while there is room; of steps always
    initial: Preconditioner[Any] | None = None  #: H₀, instead of γI

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.source is Source.STEPS and self.select is not Which.LAST:
            raise ConfigError(
                Fault(
                    f'lbfgs: select = "{self.select}" chooses among pairs of a solve, but source = "steps"',
                    path="select",
                    hint='remove select, or set source = "solve"',
                )
            )

        if self.initial is not None and (self.initial.varying or self.initial.pairs() is not None):
            raise ConfigError(
                Fault(
                    f"lbfgs: initial = {type(self.initial).__name__} is not one fixed linear map in a step",
                    path="initial",
                    hint='use a preconditioner that stores an inverse, such as "kfac"',
                )
            )
        if self.source is Source.STEPS and self.running:
            raise ConfigError(
                Fault(
                    'lbfgs: running = true needs source = "solve"',
                    path="running",
                    hint='remove running, or set source = "solve"',
                )
            )

    def needs(self, step: int) -> Needs:
        return GRADIENT_ONLY if self.initial is None else self.initial.needs(step)

    def joins(self, layer: str) -> bool:
        return self.initial is not None and self.initial.joins(layer)

    def reads(self, layer: str) -> bool:
        return self.initial is not None and self.initial.reads(layer)

    def settled(self, blocks: Sequence[Block]) -> Lbfgs:
        return self if self._initial is None else replace(self, initial=self._initial.settled(blocks))

    def init(self, like: BlockVector, ctx: Context) -> LbfgsState:
        rows = self.memory + (self.source is Source.STEPS)
        return LbfgsState(
            empty(rows, ctx.zeros(like, "work")),
            None if self._initial is None else self._initial.init(like, ctx),
        )

    def observe(self, state: LbfgsState, seen: Evaluation, ctx: Context) -> None:
        if self._initial is not None and state.initial is not None:
            self._initial.observe(state.initial, seen, ctx)
        if self.source is Source.SOLVE:
            return
        if state.memory.waiting:
            complete(state.memory, seen.gradient)
            state.ready = None
        if state.memory.count == 0:
            norm = float(seen.gradient.norm())
            state.start = 1 / norm if norm > 1 else 1.0

    def ready(self, state: LbfgsState) -> bool:
        return self._initial is None or state.initial is None or self._initial.ready(state.initial)

    def refresh(self, state: LbfgsState, ctx: Context) -> None:
        if self._initial is not None and state.initial is not None:
            self._initial.refresh(state.initial, ctx)
            state.initial.gamma = self._initial.gamma(state.memory, ctx.damping)
        state.ready = weights(state.memory, ctx.damping)

    def apply(self, state: LbfgsState, v: BlockVector, ctx: Context) -> Solve:
        ready = state.ready
        if ready is None or ready.damping != ctx.damping:
            ready = weights(state.memory, ctx.damping)
        if self._initial is not None and state.initial is not None:
            first, own = self._initial, state.initial
            if ready is None:
                return first.apply(own, v, ctx)
            return Solve(around(state.memory, ready, v, lambda q: first.apply(own, q, ctx).x.owned()))
        if ready is not None:
            return Solve(in_two_sweeps(state.memory, ready, v))
        return Solve(v.borrow() if state.start == 1 else v * state.start)

    def pairs(self) -> Pairs | None:
        return Pairs(self.memory, self.select) if self.source is Source.SOLVE else None

    def learn(self, state: LbfgsState, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        state.ready = None
        said: tuple[Event, ...] = ()
        if self._initial is not None and state.initial is not None:
            said = self._initial.learn(state.initial, what, ctx)
        if self.source is Source.SOLVE:
            learn(state.memory, what.solve.secants, running=self.running)
            return said
        if not what.step.accepted:
            dropped = forget(state.memory)
            return (*said, Event("memory-reset", ctx.step, {"pairs": dropped})) if dropped else said
        begin(state.memory, what.step.update, what.step.alpha, what.before.gradient)
        if what.step.gradient is not None:
            complete(state.memory, what.step.gradient)
        return said

    @property
    def _initial(self) -> Initial | None:
        """H₀ where it is a part; before it is settled, on every block."""
        if self.initial is None or isinstance(self.initial, Initial):
            return self.initial
        return Initial(self.initial)
