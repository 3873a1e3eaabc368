"""What is known of a step once it is taken."""

from __future__ import annotations

from curvlab.engine.method import Method
from curvlab.engine.step import StepTaken
from curvlab.protocols.report import StepFacts


def facts(method: Method, taken: StepTaken, rate: float) -> StepFacts:
    """The facts of a step of ``method``; ``rate`` is the one it began with."""
    seen, outcome, ctx = taken.seen, taken.outcome, taken.ctx
    asks = method.step.needs(ctx.step)
    searched = bool(asks.losses or asks.products or asks.gradients)
    count = taken.products
    return StepFacts(
        loss=float(seen.loss),
        lr=outcome.step.alpha if searched else rate,
        damping=ctx.damping,
        cg_iterations=outcome.solve.iterations if outcome.solve.iterations > 0 else None,
        products=count,
        product_examples=None if count is None else count * seen.curvature_examples,
        reduction_ratio=outcome.ratio,
        accepted=outcome.step.accepted if searched else None,
        gradient_size=seen.examples or None,
        curvature_size=None if count is None else seen.curvature_examples,
    )
