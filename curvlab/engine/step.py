"""One training step of one method on its blocks.  No mathematics lives here.

The vectors of a step (its gradient, its solution, its update) are valid during the step: their
buffers are used again by the next one.  A part that wants to remember one copies it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from curvlab.engine.arms import Arm
from curvlab.engine.stride import Stride
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Aftermath, Line, Pass, Solve
from curvlab.protocols.objective import Objective
from curvlab.protocols.report import Event
from curvlab.protocols.step import At


def observe(arm: Arm, seen: Pass, ctx: Context) -> None:
    """Take in the evidence; once per step, whatever is retried afterwards."""
    arm.method.preconditioner.observe(arm.state.preconditioner, seen, ctx)


def direct(arm: Arm, v: BlockVector, ctx: Context) -> Solve:
    """Refresh and precondition: what the ladder repeats with more damping."""
    part, state = arm.method.preconditioner, arm.state.preconditioner
    part.refresh(state, ctx)
    return part.apply(state, v, ctx)


def before(arm: Arm, seen: Pass, ctx: Context, stride: Stride) -> tuple[BlockVector, At]:
    """The gradient after the transforms that stand before preconditioning."""
    lr = arm.method.step.rate(ctx.step) * stride.rate
    at = At(seen.gradient, ctx.step, lr, stride.add_parameters_, arm.blocks.read)
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
    stride: Stride,
) -> tuple[Aftermath, tuple[Event, ...]]:
    """Transform, search, write θ once (or not at all), learn; what came of it, and what is to be told."""
    method, state = arm.method, arm.state
    update = solve.x
    for transform, own in zip(method.on_update, state.on_update, strict=True):
        update = transform(own, update, at)
    update = stride.scaled(update)
    trial = Trial(arm, stride, objective, seen)
    line = Line(
        update=update,
        gradient=seen.gradient,
        rate=stride.rate,
        damping=ctx.damping,
        ggn=seen.ggn,
        loss_of=trial.loss_of,
        start=trial.start,
        differentiate=trial.differentiate,
        loss=float(seen.loss) if method.step.needs(ctx.step).gradients else float("nan"),
        iterates=solve.iterates,
    )
    step = method.step.search(state.step, line, ctx.step)
    asks = method.damping.needs(ctx.step)
    ratio = line.ratio(step) if asks.products and step.accepted else None
    if step.accepted:
        stride.write_(step.update, step.alpha)
    what = Aftermath(seen, solve, step, ratio)
    said = method.preconditioner.learn(state.preconditioner, what, ctx)
    method.damping.learn(state.damping, what, ctx.step)
    return what, said


def recycle(what: Aftermath) -> None:
    """The step is over: its vectors' buffers may be used again."""
    for vector in (what.before.gradient, what.solve.x, what.step.update):
        vector.layout.recycle(vector)


@dataclass
class Trial:
    """What a step rule may try: losses and gradients at θ − α·u.  Nothing is written.

    A loss is computed once, however often it is asked for.
    """

    arm: Arm
    stride: Stride
    objective: Objective | None
    seen: Pass
    #: by identity of the direction, which is kept so that no other can take on its identity, and rate
    known: dict[tuple[int, float], tuple[BlockVector, float]] = field(default_factory=dict)
    at_start: float | None = None

    def loss_of(self, update: BlockVector, alpha: float) -> float:
        """The loss at θ − α·u on the acceptance sample."""
        key = (id(update), alpha)
        if key not in self.known:
            self.known[key] = update, float(self._asked().loss(self._at(update, alpha)))
        return self.known[key][1]

    def start(self) -> float:
        """The loss at θ on the acceptance sample."""
        if self.at_start is None:
            self.at_start = float(self._asked().start(self.seen))
        return self.at_start

    def differentiate(
        self, update: BlockVector, alpha: float, /, *, acceptance: bool = False
    ) -> tuple[float, BlockVector]:
        """Loss and gradient at θ − α·u, on the gradient sample or on the acceptance sample."""
        loss, gradient = self._asked().differentiate(self._at(update, alpha), acceptance=acceptance)
        return float(loss), self.arm.blocks.pack(gradient)

    def _at(self, update: BlockVector, alpha: float) -> dict[str, Tensor]:
        return self.stride.tried(update, alpha)

    def _asked(self) -> Objective:
        assert self.objective is not None, "trials without an objective are refused before the step"
        return self.objective
