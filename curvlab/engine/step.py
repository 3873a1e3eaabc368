"""One training step of every method: ``take_step``.  No mathematics lives here.

The vectors of a step (its gradient, its solution, its update) are valid during the step; afterwards
nothing of them is held.  A part that keeps one copies it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from curvlab.engine.admission import admit
from curvlab.engine.agreement import ALONE, Agreement
from curvlab.engine.arms import Arm, Arms
from curvlab.engine.owners import Owners
from curvlab.engine.planned import PlannedUpdate
from curvlab.engine.rates import ParameterRates
from curvlab.engine.source import Source
from curvlab.engine.state import forget
from curvlab.engine.undo import Undo
from curvlab.linalg.compose import Counted
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, StepOutcome
from curvlab.protocols.sampler import SampleStream


@dataclass(frozen=True)
class StepEnvironment:
    """What a step takes from the optimizer around it.

    ``allot`` gives every block to an arm that can treat it in this step, and returns the arms that take
    part.  ``rates`` is how an arm's parameters move in a step of this evaluation.  ``quiet`` gives the
    context in which the method computes: nothing is recorded, no autocast is on.  With ``owners`` this
    process plans the updates of its own blocks, and all tell each other what they have written.
    """

    arms: Arms
    blocks: Blocks
    allot: Callable[[Evaluation], Sequence[Arm]]
    rates: Callable[[Arm, Evaluation], ParameterRates]
    quiet: Callable[[], AbstractContextManager[Any]]
    samples: SampleStream[Any] | None = None
    owners: Owners | None = None

    def gathered(self) -> AbstractContextManager[Any]:
        """Inside, this process has whole parameters of the blocks that it computes with."""
        return nullcontext() if self.owners is None else self.owners.gathered(self.blocks)

    @property
    def agreement(self) -> Agreement:
        """What the processes that own blocks decide together; one process decides alone."""
        return ALONE if self.owners is None else Agreement(self.owners.ranks)


@dataclass(frozen=True)
class StepTaken:
    """A step that was taken: the whole evaluation, and outcome and context of the first arm.

    ``products`` counts the Gauss-Newton products made.
    """

    seen: Evaluation
    outcome: StepOutcome
    ctx: Context
    products: int | None


def take_step(source: Source, env: StepEnvironment, step: int) -> StepTaken | None:
    """Evaluate, observe, refresh, direct, search, write, evaluate again where a part asks for it, learn.

    ``None`` if the source skips this step, or if no parameter has a gradient.  Raises ``Diverged`` when the
    retries of the ladder have failed.  Whatever is raised before the write: parameters, states and generator
    are as before the step, bit for bit.
    """
    context, emit, agreement = env.arms.context, env.arms.emit, env.agreement
    env.arms.begin(step)
    with Undo(env.arms.generator) as undo:
        seen = source.evaluate(context(env.arms.members[0], step), undo)
        arms = env.allot(seen) if seen is not None else ()
        if seen is None or not arms:
            return None
        seen, products = _counting(seen)
        with env.quiet(), env.gathered():
            admitted = admit(arms, seen, env.rates, step, undo, agreement)
            plans = [PlannedUpdate(each, context(each.arm, step), emit, undo, agreement) for each in admitted]
            # preconditioners that cannot fail come last, so that their states need not be kept
            order = sorted(plans, key=lambda plan: not plan.risk.fallible)
            for plan in order:
                plan.observe()
                if plan.moves:
                    plan.transform_gradient()
                    plan.direct()  # refresh and precondition, with more damping while that fails
            for plan in order:
                plan.search(source.objective)
            undo.settle()
            for plan in order:
                plan.write()
            if env.owners is not None:
                for arm in arms:
                    env.owners.spread(arm.blocks, seen.absent)
            if any(plan.outcome.step.accepted for plan in plans):
                after = source.evaluate_after(context(env.arms.members[0], step))
                for plan in plans:
                    plan.look_back(after)
            for plan in plans:
                agreement.attempt(plan.learn)
            first = plans[0]
            source.finish(seen, first.outcome.step)
    if env.samples is not None:
        # a sampler judges the gradient of all blocks: the variance beside it is that of all
        env.samples.learn(replace(first.outcome, before=seen))
    _release(arms, seen)
    return StepTaken(seen, first.outcome, first.ctx, None if products is None else products.count)


def _counting(seen: Evaluation) -> tuple[Evaluation, Counted | None]:
    """The evaluation with its Gauss-Newton products counted, over all arms, and their counter."""
    if seen.ggn is None:
        return seen, None
    products = Counted(seen.ggn)
    return replace(seen, ggn=products), products


def _release(arms: Sequence[Arm], seen: Evaluation) -> None:
    """Release the vectors of a step that is over, and the evidence that states hold of it."""
    seen.gradient.layout.release()
    for arm in arms:
        arm.mine.layout.release()
        if seen.layers or seen.ggn is not None:
            forget(arm.state.preconditioner)
