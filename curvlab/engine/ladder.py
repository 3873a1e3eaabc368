"""What is tried when numbers fail: float64, then more damping, then an end that names the culprit.

Before any state changes, gradient, statistics and states are checked (``admitted``): numbers that are not
finite end the step at once.  Then come the rungs, each reported as an event:

1. a non-finite loss is evaluated again in float64 (``retried-in-float64``);
2. a factorization that fails in float64 too, or a non-finite update, is repeated with ten times the
   damping, up to ``RUNGS`` times (``more-damping``);
3. ``Diverged``, with the step and the block; parameters and states are as they were before the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from curvlab.engine.arms import Arm
from curvlab.engine.health import non_finite_statistics, require_finite_state
from curvlab.engine.state import tensors_of
from curvlab.engine.step import Hazard, Way, direct, observe, searched, transformed
from curvlab.engine.undo import Undo
from curvlab.errors import Diverged, NotPositiveDefinite
from curvlab.linalg.cg import Stop
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, Step, StepOutcome
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.report import Event

#: how often damping is raised within one step, tenfold each time
RUNGS = 4
#: λ to begin with where a method's own is zero: what rounding makes of a unit eigenvalue in float32
FIRST_DAMPING = 1e-7

#: no update whose square does not overflow makes parameters infinite at this rate
TAME_RATE = 1e6
#: of a solution whose ‖x‖² is below, transforms that cannot fail make a finite update
MODEST = 1e30

Emit = Callable[[Event], None]


def evaluated(objective: Objective, needs: Needs, blocks: Blocks, ctx: Context, emit: Emit) -> Evaluation:
    """The pass at θ; in float64, cast back, if its loss is not finite; raises ``Diverged``."""
    seen = objective.evaluate(needs, blocks, ctx)
    if math.isfinite(float(seen.loss)):
        return seen
    wide = objective.cast(torch.float64)
    if wide is not None and seen.gradient.dtype != torch.float64:
        with _in_double(blocks.model):
            again = wide.evaluate(needs, blocks, ctx)
        if math.isfinite(float(again.loss)):
            emit(Event("retried-in-float64", ctx.step, {"loss": float(again.loss)}))
            return _narrowed(again, seen.gradient.dtype, blocks.model)
    raise Diverged(
        f"step {ctx.step}: the loss is {float(seen.loss)}, in float64 too; {culprit(blocks, seen.gradient)}"
    )


def admitted(
    arms: Sequence[Arm], passes: Sequence[Evaluation], rates: Sequence[float], step: int, undo: Undo
) -> list[tuple[int, Hazard]]:
    """Check everything that a step begins from; keep the states whose step may fail.

    ``rates`` multiply the arms' own.

    Returns the order in which the arms may change their states, and for each what may fail; preconditioners
    that cannot come last, so that nothing of them need be kept.  Raises ``Diverged``, with nothing changed,
    for a gradient, layer statistics or a state that is not finite.
    """
    moderate = [_good(arm, seen, step) for arm, seen in zip(arms, passes, strict=True)]
    fallible = [a.method.preconditioner.fallible(a.state.preconditioner, step) for a in arms]
    late = [_may_fail_late(arm, rate, step) for arm, rate in zip(arms, rates, strict=True)]
    if not all(moderate) or any(late):
        for arm in arms:
            state = arm.state
            undo.keep(state.preconditioner, state.on_gradient, state.on_update, state.step, state.damping)
    else:
        for arm, may_fail in zip(arms, fallible, strict=True):
            if may_fail:
                undo.keep(arm.state.preconditioner, arm.state.on_gradient)
    hazards = [
        Hazard(
            failing,
            bounded=tame and not any(t.fallible for t in arm.method.on_update),
            unseen=not failing and not tensors_of(arm.state.on_update),
        )
        for arm, failing, tame in zip(arms, fallible, moderate, strict=True)
    ]
    return sorted(enumerate(hazards), key=lambda each: not each[1].preconditioner)


def _good(arm: Arm, seen: Evaluation, step: int) -> bool:
    """Whether no square of what a step begins from overflows; raises if something is not finite."""
    size = seen.gradient.size()
    if not math.isfinite(size) and not seen.gradient.is_finite():
        raise Diverged(f"step {step}: the gradient is not finite; {culprit(arm.blocks, seen.gradient)}")
    wrong = list(non_finite_statistics(seen.layers))
    if wrong:
        raise Diverged(f"step {step}: the layer statistics are not finite: {', '.join(wrong)}")
    what = f'step {step}: the state of "{arm.name}" is not finite; load an earlier checkpoint'
    small = require_finite_state(arm.state, arm.state.watch, what)
    # parameters may be infinite where they do not count, as a mask is; transforms read them
    _, tame = arm.state.watch.inspect(arm.blocks.parameters.values())
    return math.isfinite(size) and small and tame


def _may_fail_late(arm: Arm, rate: float, step: int) -> bool:
    """Whether something can fail once ``on_update`` has changed its states, or in any transform."""
    method = arm.method
    transforms = (*method.on_gradient, *method.on_update)
    searches = method.step.needs(step) | method.damping.needs(step)
    tame = abs(rate * method.step.rate(step)) <= TAME_RATE
    return not tame or bool(searches.objective) or any(t.fallible for t in transforms)


def observed(arm: Arm, seen: Evaluation, ctx: Context) -> None:
    """The method takes the evidence in; more damping does not help a factorization that fails there."""
    try:
        observe(arm, seen, ctx)
    except NotPositiveDefinite as error:
        raise Diverged(f"step {ctx.step}: {error}") from error


def directed(
    arm: Arm, v: BlockVector, ctx: Context, emit: Emit, undo: Undo, *, unseen: bool = False
) -> tuple[Solve, Context, bool]:
    """Refresh and apply, with more damping while that fails; the context that succeeded.

    ``unseen``: whether the solution is finite is left to the look at the update (``planned``).  The third
    value is whether the solution was looked at and is modest.
    """
    for rung in range(RUNGS + 1):
        try:
            solve = direct(arm, v, ctx)
            if unseen and solve.reason is not Stop.NONFINITE:
                return solve, ctx, False
            size = solve.x.size()
            small = math.isfinite(size)
            if solve.reason is not Stop.NONFINITE and (small or solve.x.is_finite()):
                if not small:
                    undo.keep(arm.state.on_update)
                return solve, ctx, size < MODEST
            reason = f"the update is not finite; {culprit(arm.blocks, solve.x)}"
        except NotPositiveDefinite as error:
            reason = str(error)
        if rung < RUNGS:
            ctx = replace(ctx, damping=max(10.0 * ctx.damping, FIRST_DAMPING))
            emit(Event("more-damping", ctx.step, {"reason": reason, "damping": ctx.damping}))
    raise Diverged(f"step {ctx.step}: {reason}; damping up to {ctx.damping:.3g} did not help")


def planned(way: Way, objective: Objective | None, emit: Emit, undo: Undo) -> tuple[StepOutcome, Context]:
    """What is to be written, looked at before anything is; raises ``Diverged`` if it is not finite."""
    arm, ctx = way.arm, way.ctx
    if not way.moves:
        _require_sound(arm, way.hazard.preconditioner, ctx.step)
        return StepOutcome(way.seen, way.solve, Step(way.solve.x, 0.0, accepted=False)), ctx
    update = transformed(way)
    finite = way.bounded or update.is_finite()
    if way.hazard.unseen and not finite:
        solve, ctx, _ = directed(arm, way.v, ctx, emit, undo)
        way = replace(way, solve=solve, ctx=ctx)
        update = transformed(way)
        finite = update.is_finite()
    if not finite:
        raise Diverged(f"step {ctx.step}: the update is not finite; {culprit(arm.blocks, update)}")
    what = searched(way, objective, update)
    if what.step.accepted:
        _require_finite(arm, what.step.update, what.step.alpha, ctx, known=what.step.update is update)
    _require_sound(arm, way.hazard.preconditioner, ctx.step)
    return what, ctx


def _require_finite(arm: Arm, update: BlockVector, alpha: float, ctx: Context, *, known: bool) -> None:
    """θ − α · update is finite; ``known``: the update was found to be.  Rates above 1 cost another look."""
    finite = math.isfinite(alpha) and (known or update.is_finite())
    if finite and abs(alpha) <= 1.0:
        return
    size, largest = update.size(), torch.finfo(update.dtype).max
    if math.isfinite(size) and abs(alpha) < largest / 2 and abs(alpha) * math.sqrt(size) < largest / 2:
        return
    if not finite:
        raise Diverged(f"step {ctx.step}: the update is not finite; {culprit(arm.blocks, update)}")
    if not arm.blocks.read().add_(update, -alpha).is_finite():
        raise Diverged(f"step {ctx.step}: parameters would not be finite after a step of rate {alpha:.3g}")


def _require_sound(arm: Arm, fallible: bool, step: int) -> None:
    """What a step that may fail has made of its states is finite."""
    method, state = arm.method, arm.state
    made = [state.preconditioner] if fallible else []
    if any(t.fallible for t in (*method.on_gradient, *method.on_update)):
        made += [state.on_gradient, state.on_update]
    for part in made:
        require_finite_state(part, state.watch, f'step {step}: the new state of "{arm.name}" is not finite')


def culprit(blocks: Blocks, vector: BlockVector) -> str:
    """Which blocks hold non-finite parameters or entries of ``vector``."""
    bad = [n for n, t in vector.items() if not bool(torch.isfinite(t).all())]
    weights = [n for n, p in blocks.parameters.items() if not bool(torch.isfinite(p).all())]
    if weights:
        return f"non-finite parameters: {', '.join(weights)}"
    return f"non-finite entries in block {', '.join(bad)}" if bad else "every parameter is finite"


@dataclass(frozen=True)
class _Widened(LinearOperator[BlockVector]):
    """Products made in float64, of vectors that are not."""

    base: LinearOperator[BlockVector]
    model: nn.Module

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        with _in_double(self.model):
            return (self.base @ v.to(torch.float64)).to(v.dtype)

    @property
    def count(self) -> int | None:
        """Products made, if ``base`` counts them."""
        return getattr(self.base, "count", None)


def _narrowed(seen: Evaluation, dtype: torch.dtype, model: nn.Module) -> Evaluation:
    layers = {
        kind: {
            name: tuple(
                replace(t, inputs=t.inputs.to(dtype), grads=None if t.grads is None else t.grads.to(dtype))
                for t in terms
            )
            for name, terms in blocks.items()
        }
        for kind, blocks in seen.layers.items()
    }
    ggn = None if seen.ggn is None else _Widened(seen.ggn, model)
    return replace(seen, loss=seen.loss.to(dtype), gradient=seen.gradient.to(dtype), layers=layers, ggn=ggn)


@contextmanager
def _in_double(model: nn.Module) -> Iterator[None]:
    """The model in float64, and afterwards the very tensors it had."""
    tensors = [*model.parameters(), *model.buffers()]
    kept = [t.data for t in tensors]
    try:
        for t in tensors:  # the others are copied: a counter may be moved on in place
            t.data = t.data.double() if t.is_floating_point() else t.data.clone()
        yield
    finally:
        for t, data in zip(tensors, kept, strict=True):
            t.data = data
