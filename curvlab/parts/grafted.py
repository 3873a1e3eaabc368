"""Preconditioner = the direction of one, the lengths of another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, StepOutcome
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event


@dataclass
class GraftedState:
    """One state each."""

    direction: Any
    magnitude: Any


@dataclass(frozen=True)
class Grafted(Preconditioner[GraftedState]):
    """Each block's update by ``direction``, scaled to the Euclidean norm of that by ``magnitude``.

    ``x_b = ‖y_b‖ / ‖d_b‖ · d_b``: grafting (Agarwal et al. 2020, arXiv 2002.11803).  The rate is then that
    of ``magnitude``, whatever the scale of ``direction``; a block whose direction is zero stays zero.
    Damping reaches both.  Costs what both cost and a pass to scale; holds the states of both.
    """

    varying = True  # the length of the image is not linear in the gradient

    direction: Preconditioner[Any]
    magnitude: Preconditioner[Any]

    def needs(self, step: int) -> Needs:
        return self.direction.needs(step) | self.magnitude.needs(step)

    @property
    def separable(self) -> bool:
        return self.direction.separable and self.magnitude.separable

    def work(self, block: Block) -> float:
        return self.direction.work(block) + self.magnitude.work(block)

    def joins(self, layer: str) -> bool:
        return self.direction.joins(layer) or self.magnitude.joins(layer)

    def reads(self, layer: str) -> bool:
        return self.direction.reads(layer) or self.magnitude.reads(layer)

    def refuses(self, block: Block) -> str | None:
        return self.direction.refuses(block) or self.magnitude.refuses(block)

    def settled(self, blocks: Sequence[Block]) -> Grafted:
        return Grafted(self.direction.settled(blocks), self.magnitude.settled(blocks))

    def init(self, like: BlockVector, ctx: Context) -> GraftedState:
        return GraftedState(self.direction.init(like, ctx), self.magnitude.init(like, ctx))

    def observe(self, state: GraftedState, seen: Evaluation, ctx: Context) -> None:
        self.direction.observe(state.direction, seen, ctx)
        self.magnitude.observe(state.magnitude, seen, ctx)

    def ready(self, state: GraftedState) -> bool:
        return self.direction.ready(state.direction) and self.magnitude.ready(state.magnitude)

    def refresh(self, state: GraftedState, ctx: Context) -> None:
        self.direction.refresh(state.direction, ctx)
        self.magnitude.refresh(state.magnitude, ctx)

    def apply(self, state: GraftedState, v: BlockVector, ctx: Context) -> Solve:
        """The direction's solution, each block as long as the magnitude's; a block of length 0 stays 0."""
        solve = self.direction.apply(state.direction, v, ctx)
        wanted = self.magnitude.apply(state.magnitude, v, ctx).x
        x = solve.x.owned()
        for name, block in x.items():
            length = torch.linalg.vector_norm(block)
            ratio = torch.linalg.vector_norm(wanted[name]) / length
            block.mul_(torch.where(length > 0, ratio, 0.0))
        wanted.layout.recycle(wanted)
        return replace(solve, x=x, iterates=())

    def learn(self, state: GraftedState, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        said = self.direction.learn(state.direction, what, ctx)
        return (*said, *self.magnitude.learn(state.magnitude, what, ctx))
