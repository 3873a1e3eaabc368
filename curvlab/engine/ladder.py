"""What is tried when numbers fail: float64, then more damping, then an end that names the culprit.

Rungs, each reported as an event:

1. a non-finite loss is evaluated again in float64 (``retried-in-float64``);
2. a factorisation that fails in float64 too, or a non-finite update, is repeated with ten times the
   damping, up to ``RUNGS`` times (``more-damping``);
3. ``Diverged``, with the step and the block (at once for a gradient that is not finite); parameters are
   as they were before the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from curvlab.engine.arms import Arm
from curvlab.engine.step import direct, observe
from curvlab.errors import Diverged, NotPositiveDefinite
from curvlab.linalg.cg import Stop
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Pass, Solve
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.report import Event

#: how often damping is raised within one step, tenfold each time
RUNGS = 4
#: λ to begin with where a method's own is zero: what rounding makes of a unit eigenvalue in float32
FIRST_DAMPING = 1e-7

Emit = Callable[[Event], None]


def evaluated(objective: Objective, needs: Needs, blocks: Blocks, ctx: Context, emit: Emit) -> Pass:
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


def observed(arm: Arm, seen: Pass, ctx: Context) -> None:
    """The method takes the evidence in; a factorisation that fails there is beyond more damping."""
    try:
        observe(arm, seen, ctx)
    except NotPositiveDefinite as error:
        raise Diverged(f"step {ctx.step}: {error}") from error


def directed(arm: Arm, v: BlockVector, ctx: Context, emit: Emit) -> tuple[Solve, Context]:
    """Refresh and apply, with more damping while that fails; the context that succeeded."""
    for rung in range(RUNGS + 1):
        try:
            solve = direct(arm, v, ctx)
            if solve.reason is not Stop.NONFINITE and solve.x.is_finite():
                return solve, ctx
            if not v.is_finite():
                raise Diverged(f"step {ctx.step}: the gradient is not finite; {culprit(arm.blocks, v)}")
            reason = f"the update is not finite; {culprit(arm.blocks, solve.x)}"
        except NotPositiveDefinite as error:
            reason = str(error)
        if rung < RUNGS:
            ctx = replace(ctx, damping=max(10.0 * ctx.damping, FIRST_DAMPING))
            emit(Event("more-damping", ctx.step, {"reason": reason, "damping": ctx.damping}))
    raise Diverged(f"step {ctx.step}: {reason}; damping up to {ctx.damping:.3g} did not help")


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


def _narrowed(seen: Pass, dtype: torch.dtype, model: nn.Module) -> Pass:
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
