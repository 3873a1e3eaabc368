"""One training step of one method on its blocks.  No mathematics lives here.

The vectors of a step (its gradient, its solution, its update) are valid during the step; afterwards
nothing of them is held.  A part that keeps one copies it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from curvlab.engine.arms import Arm
from curvlab.engine.state import forget, tensors_of
from curvlab.engine.stride import Stride
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Line, Solve, StepOutcome
from curvlab.protocols.objective import Objective
from curvlab.protocols.report import Event
from curvlab.protocols.step import At


@dataclass(frozen=True)
class Hazard:
    """What may fail in an arm's step: ``preconditioner``, or nothing after it where ``bounded``.

    ``unseen``: the solution needs no look of its own, because no state lies between it and the update.
    """

    preconditioner: bool
    bounded: bool
    unseen: bool


@dataclass(frozen=True)
class Way:
    """What is computed for one arm before any parameter is written.

    ``v`` is what it has preconditioned, ``hazard`` what might fail, and ``bounded`` whether the update is
    known to be finite by the size of the solution.  Without ``moves`` the arm stays where it is in this
    step (``rest``).
    """

    arm: Arm
    seen: Evaluation
    v: BlockVector
    at: At
    solve: Solve
    ctx: Context
    stride: Stride
    hazard: Hazard
    bounded: bool
    moves: bool = True


def observe(arm: Arm, seen: Evaluation, ctx: Context) -> None:
    """Take in the evidence; once per step, whatever is retried afterwards."""
    arm.method.preconditioner.observe(arm.state.preconditioner, seen, ctx)


def direct(arm: Arm, v: BlockVector, ctx: Context) -> Solve:
    """Refresh and precondition: what the ladder repeats with more damping."""
    part, state = arm.method.preconditioner, arm.state.preconditioner
    part.refresh(state, ctx)
    return part.apply(state, v, ctx)


def before(arm: Arm, seen: Evaluation, ctx: Context, stride: Stride) -> tuple[BlockVector, At]:
    """The gradient after the transforms before preconditioning, and where those behind it stand."""
    at = _at(arm, seen, ctx, stride)
    v = seen.gradient.borrow()
    for transform, state in zip(arm.method.on_gradient, arm.state.on_gradient, strict=True):
        v = transform(state, v, at)
    return v, replace(at, given=v.borrow())


def rest(arm: Arm, seen: Evaluation, ctx: Context, stride: Stride, hazard: Hazard) -> Way:
    """The way of an arm whose preconditioner is not ready: it has observed, and nothing else happens."""
    nothing = Solve(seen.gradient.zeros_like())
    at = _at(arm, seen, ctx, stride)
    return Way(arm, seen, seen.gradient.borrow(), at, nothing, ctx, stride, hazard, False, moves=False)


def _at(arm: Arm, seen: Evaluation, ctx: Context, stride: Stride) -> At:
    lr = arm.method.step.rate(ctx.step) * stride.rate
    return At(seen.gradient, ctx.step, lr, stride.add_parameters_, arm.blocks.read)


def transformed(way: Way) -> BlockVector:
    """The update, in units of the arm's rate: the solution after the transforms behind preconditioning."""
    update = way.solve.x
    for transform, own in zip(way.arm.method.on_update, way.arm.state.on_update, strict=True):
        update = transform(own, update, way.at)
    return way.stride.scaled(update)


def searched(way: Way, objective: Objective | None, update: BlockVector) -> StepOutcome:
    """The step along ``update`` and, where the damping needs it, the reduction ratio; nothing is written."""
    method, seen, ctx = way.arm.method, way.seen, way.ctx
    trial = Trial(way.stride, objective, seen)
    line = Line(
        update=update,
        gradient=seen.gradient,
        rate=way.stride.rate,
        damping=ctx.damping,
        ggn=seen.ggn,
        loss_of=trial.loss_of,
        start=trial.start,
        differentiate=trial.differentiate,
        loss=float(seen.loss) if method.step.needs(ctx.step).gradients else float("nan"),
        iterates=way.solve.iterates,
    )
    step = method.step.search(way.arm.state.step, line, ctx.step)
    asks = method.damping.needs(ctx.step)
    ratio = line.ratio(step) if asks.products and step.accepted else None
    return StepOutcome(seen, way.solve, step, ratio)


def write(way: Way, what: StepOutcome) -> None:
    """The one write of θ, or none; the states are from now on those of this step."""
    arm = way.arm
    if what.step.accepted:
        way.stride.write_(what.step.update, what.step.alpha)
    if way.hazard.preconditioner:  # it may hold other tensors than before
        arm.state.watch.forget_all_but((*tensors_of(arm.state), *arm.blocks.parameters.values()))
    arm.state.watch.renew()


def learned(arm: Arm, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
    """Parts learn from the outcome of the step; returns their events."""
    said = arm.method.preconditioner.learn(arm.state.preconditioner, what, ctx)
    arm.method.damping.learn(arm.state.damping, what, ctx.step)
    return said


def release(arms: Sequence[Arm], seen: Evaluation) -> None:
    """Release the vectors of a step that is over, and the evidence that states hold of it."""
    seen.gradient.layout.release()
    for arm in arms:
        arm.blocks.layout.release()
        if seen.layers or seen.ggn is not None:
            forget(arm.state.preconditioner)


@dataclass
class Trial:
    """What a step rule may try: losses and gradients at θ − α·u.  Nothing is written.

    Each loss is computed once.
    """

    stride: Stride
    objective: Objective | None
    seen: Evaluation
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
        return float(loss), self.stride.blocks.pack(gradient)

    def _at(self, update: BlockVector, alpha: float) -> dict[str, Tensor]:
        return self.stride.tried(update, alpha)

    def _asked(self) -> Objective:
        assert self.objective is not None, "trials without an objective are refused before the step"
        return self.objective
