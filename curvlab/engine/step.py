"""One training step of one method on its blocks.  No mathematics lives here.

The vectors of a step (its gradient, its solution, its update) are valid during the step: their
buffers are used again by the next one.  A part that wants to remember one copies it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from curvlab.engine.method import Arm
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Aftermath, Line, Pass, Solve
from curvlab.protocols.objective import Objective
from curvlab.protocols.step import At


def observe(arm: Arm, seen: Pass, ctx: Context) -> None:
    """Take in the evidence; once per step, whatever is retried afterwards."""
    arm.method.preconditioner.observe(arm.state.preconditioner, seen, ctx)


def direct(arm: Arm, v: BlockVector, ctx: Context) -> Solve:
    """Refresh and precondition: what the ladder repeats with more damping."""
    part, state = arm.method.preconditioner, arm.state.preconditioner
    part.refresh(state, ctx)
    return part.apply(state, v, ctx)


def before(arm: Arm, seen: Pass, ctx: Context, rate: float) -> tuple[BlockVector, At]:
    """The gradient after the transforms that stand before preconditioning."""
    lr = arm.method.step.rate(ctx.step) * rate
    at = At(seen.gradient, ctx.step, lr, arm.blocks.add_parameters_, arm.blocks.read)
    v = seen.gradient.borrow()
    for transform, state in zip(arm.method.on_gradient, arm.state.on_gradient, strict=True):
        v = transform(state, v, at)
    return v, at


def commit(
    arm: Arm,
    objective: Objective | None,
    seen: Pass,
    solve: Solve,
    at: At,
    ctx: Context,
    rate: float,
) -> Aftermath:
    """Transform, search, write θ once (or not at all), learn."""
    method, state = arm.method, arm.state
    update = solve.x
    for transform, own in zip(method.on_update, state.on_update, strict=True):
        update = transform(own, update, at)
    line = Line(
        update=update,
        gradient=seen.gradient,
        rate=rate,
        damping=ctx.damping,
        ggn=seen.ggn,
        loss_of=_loss_of(arm, objective),
        start=lambda: float(_asked(objective).start(seen)),
    )
    step = method.step.search(state.step, line, ctx.step)
    asks = method.damping.needs(ctx.step)
    ratio = line.ratio(step) if asks.products and step.accepted else None
    if step.accepted:
        arm.blocks.subtract_(step.update, step.alpha)
    what = Aftermath(seen, solve, step, ratio)
    method.preconditioner.learn(state.preconditioner, what, ctx)
    method.damping.learn(state.damping, what, ctx.step)
    return what


def recycle(what: Aftermath) -> None:
    """The step is over: its vectors' buffers may be used again."""
    for vector in (what.before.gradient, what.solve.x, what.step.update):
        vector.layout.recycle(vector)


def _asked(objective: Objective | None) -> Objective:
    assert objective is not None, "needs.losses without an objective is refused before the step"
    return objective


def _loss_of(arm: Arm, objective: Objective | None) -> Callable[[BlockVector, float], float]:
    """The loss on the acceptance sample at θ − α·u: functional, nothing is written."""

    def loss_of(update: BlockVector, alpha: float) -> float:
        slots = arm.blocks.slots(update)
        with torch.no_grad():
            trial = {n: p.sub(slots[n], alpha=alpha) for n, p in arm.blocks.parameters.items()}
        return float(_asked(objective).loss(trial))

    return loss_of
