"""What is known of a step once it is taken."""

from __future__ import annotations

from dataclasses import dataclass

from curvlab.engine.method import Method
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, StepOutcome


@dataclass(frozen=True)
class StepFacts:
    """What is known of the last step, as plain numbers: nothing of it is held in tensors."""

    loss: float
    lr: float
    damping: float | None = None
    cg_iterations: int | None = None
    products: int | None = None
    product_examples: int | None = None
    reduction_ratio: float | None = None
    accepted: bool | None = None
    gradient_size: int | None = None
    curvature_size: int | None = None


def facts(method: Method, seen: Evaluation, what: StepOutcome, ctx: Context, rate: float) -> StepFacts:
    """The facts of a step of ``method``; ``rate`` is the one it began with."""
    asks = method.step.needs(ctx.step)
    searched = bool(asks.losses or asks.products or asks.gradients)
    count = getattr(seen.ggn, "count", None)
    return StepFacts(
        loss=float(seen.loss),
        lr=what.step.alpha if searched else rate,
        damping=ctx.damping,
        cg_iterations=what.solve.iterations if what.solve.iterations > 0 else None,
        products=count,
        product_examples=None if count is None else count * seen.curvature_examples,
        reduction_ratio=what.ratio,
        accepted=what.step.accepted if searched else None,
        gradient_size=seen.examples or None,
        curvature_size=seen.curvature_examples if seen.ggn is not None else None,
    )
