"""H₀ where it is another preconditioner: on the blocks that one treats; ``γ I`` on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, StepOutcome
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab_lbfgs.memory import Memory, acute


@dataclass
class InitialState:
    """The part's state, ``None`` if it treats no block; γ on the others, of the latest pairs."""

    part: Any
    gamma: float = field(default=1.0, metadata={"transient": True})


@dataclass(frozen=True)
class Initial(Preconditioner[InitialState]):
    """``part`` on all blocks of ``layout`` but ``others``, which it refuses, and γI on those.

    Before it is settled it has no layout, and takes every block for one of the part's.
    """

    part: Preconditioner[Any]
    layout: BlockLayout | None = None
    others: frozenset[str] = frozenset()

    def needs(self, step: int) -> Needs:
        return self.part.needs(step)

    def joins(self, layer: str) -> bool:
        return self.part.joins(layer)

    def reads(self, layer: str) -> bool:
        return self.part.reads(layer)

    def settled(self, blocks: Sequence[Block]) -> Initial:
        treated = [b for b in blocks if not self.part.refuses(b)]
        others = frozenset(b.name for b in blocks if self.part.refuses(b))
        layout = BlockLayout({b.name: b.shape for b in blocks}, [b.name for b in blocks if b.one_hot])
        return Initial(self.part.settled(treated), layout, others)

    def fallible(self, state: InitialState, step: int) -> bool:
        return state.part is not None and self.part.fallible(state.part, step)

    def init(self, like: BlockVector, ctx: Context) -> InitialState:
        own = self._own(like.layout)
        return InitialState(self.part.init(like.restrict(own), ctx) if own.names else None)

    def observe(self, state: InitialState, seen: Evaluation, ctx: Context) -> None:
        if state.part is not None:
            self.part.observe(state.part, seen.restrict(self._own(seen.gradient.layout)), ctx)

    def ready(self, state: InitialState) -> bool:
        return state.part is None or self.part.ready(state.part)

    def refresh(self, state: InitialState, ctx: Context) -> None:
        if state.part is not None:
            self.part.refresh(state.part, ctx)

    def apply(self, state: InitialState, v: BlockVector, ctx: Context) -> Solve:
        if not self.others:
            return self.part.apply(state.part, v, ctx)
        z = v * state.gamma
        if state.part is not None:
            for name, x in self.part.apply(state.part, v.restrict(self._own(v.layout)), ctx).x.items():
                z[name].copy_(x)
        return Solve(z)

    def learn(self, state: InitialState, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        if state.part is None:
            return ()
        return self.part.learn(state.part, what.restrict(self._own(what.before.gradient.layout)), ctx)

    def gamma(self, memory: Memory, damping: float) -> float:
        """γ for λ = ``damping``: ``sᵀy / yᵀy`` of what the newest pair says of ``others``.

        That part of a pair need not be one: where its sᵀy is not positive, and without a pair, γ = 1/λ,
        the inverse of no curvature at all (1 where λ = 0).
        """
        undecided = 1 / damping if damping > 0 else 1.0
        if self.layout is None or not self.others or not memory.count:
            return undecided
        newest = memory.order[-1]
        s, y = (BlockVector(self.layout, row) for row in memory.rows[:, newest])
        ss = sy = yy = 0.0
        for name in sorted(self.others):
            a, b = s[name].flatten(), y[name].flatten()
            b = b.add(a, alpha=damping - float(memory.damping[newest]))
            ss, sy, yy = ss + float(a @ a), sy + float(a @ b), yy + float(b @ b)
        return sy / yy if acute(sy, yy, memory.rows.dtype, ss=ss) else undecided

    def _own(self, layout: BlockLayout) -> BlockLayout:
        return layout.restrict(tuple(n for n in layout.names if n not in self.others))
