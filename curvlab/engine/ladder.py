"""What is tried when numbers fail: float64, then more damping, then an end that names the culprit.

Retry policies around the parts of a step (``take_step``); each retry is reported as an event:

1. a non-finite loss is evaluated again in float64 (``retried-in-float64``);
2. a factorization that fails in float64 too, or a non-finite update, is repeated with ten times the
   damping, up to ``RUNGS`` times (``more-damping``);
3. ``Diverged``, with the step and the block; parameters and states are as they were before the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import torch
from torch import nn

from curvlab.engine.agreement import ALONE, Agreement
from curvlab.engine.health import culprit
from curvlab.errors import Diverged, NotPositiveDefinite
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.report import Event

T = TypeVar("T")

#: how often damping is raised within one step, tenfold each time
RUNGS = 4
#: λ to begin with where a method's own is zero: what rounding makes of a unit eigenvalue in float32
FIRST_DAMPING = 1e-7

Emit = Callable[[Event], None]


class NotFinite(Exception):
    """What an attempt made is not finite; the message names the block."""


def with_more_damping(
    attempt: Callable[[Context], T], ctx: Context, emit: Emit, agreement: Agreement = ALONE
) -> tuple[T, Context]:
    """What ``attempt`` returns, and the context it succeeded with: ``ctx``, or one of more damping.

    An attempt fails by ``NotPositiveDefinite`` or ``NotFinite``, and in all processes if it fails in one.
    Raises ``Diverged`` when the last one has.
    """
    reason: str | None = None
    for rung in range(RUNGS + 1):
        found, reason = agreement.attempt(partial(_tried, attempt, ctx))
        reason = agreement.first(reason)
        if reason is None:
            return found, ctx  # type: ignore[return-value]
        if rung < RUNGS:
            ctx = replace(ctx, damping=max(10.0 * ctx.damping, FIRST_DAMPING))
            emit(Event("more-damping", ctx.step, {"reason": reason, "damping": ctx.damping}))
    raise Diverged(f"step {ctx.step}: {reason}; damping up to {ctx.damping:.3g} did not help")


def _tried(attempt: Callable[[Context], T], ctx: Context) -> tuple[T | None, str | None]:
    """What the attempt returns, or why it failed."""
    try:
        return attempt(ctx), None
    except (NotPositiveDefinite, NotFinite) as error:
        return None, str(error)


def evaluated(objective: Objective, needs: Needs, blocks: Blocks, ctx: Context, emit: Emit) -> Evaluation:
    """The evaluation at θ; in float64, cast back, if its loss is not finite; raises ``Diverged``."""
    seen = objective.evaluate(needs, blocks, ctx)
    if math.isfinite(float(seen.loss)):
        return seen
    wide = objective.cast(torch.float64) if blocks.shards is None else None  # fully_shard fixes the dtype
    if wide is not None and seen.gradient.dtype != torch.float64:
        with _in_double(blocks.model):
            again = wide.evaluate(needs, blocks, ctx)
        if math.isfinite(float(again.loss)):
            emit(Event("retried-in-float64", ctx.step, {"loss": float(again.loss)}))
            return _narrowed(again, seen.gradient.dtype, blocks.model)
    too = "" if blocks.shards is not None else ", in float64 too"
    raise Diverged(f"step {ctx.step}: the loss is {float(seen.loss)}{too}; {culprit(blocks, seen.gradient)}")


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
