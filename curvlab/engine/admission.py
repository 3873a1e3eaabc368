"""What a step begins from, checked before any state changes; and which states are copied for a failure.

Gradient, statistics, states and parameters that are not finite end the step at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from curvlab.engine.agreement import ALONE, Agreement
from curvlab.engine.arms import Arm
from curvlab.engine.health import Watch, culprit, non_finite_statistics, require_finite_state
from curvlab.engine.rates import ParameterRates
from curvlab.engine.state import tensors_of
from curvlab.engine.undo import Undo
from curvlab.errors import Diverged
from curvlab.protocols.evidence import Evaluation

#: no update whose square does not overflow makes parameters infinite at this rate
TAME_RATE = 1e6


@dataclass(frozen=True)
class Risk:
    """What may fail in an arm's step.

    ``fallible``: its preconditioner.  ``bounded``: nothing behind the preconditioner, if the solution has
    moderate size.  ``checked_late``: no state lies between solution and update, so that the check of the
    update is enough.
    """

    fallible: bool
    bounded: bool
    checked_late: bool


@dataclass(frozen=True)
class Admitted:
    """An arm that takes part in a step, its share of the evaluation, and what may fail in it."""

    arm: Arm
    seen: Evaluation
    rates: ParameterRates
    risk: Risk


def admit(
    arms: Sequence[Arm],
    seen: Evaluation,
    rates_of: Callable[[Arm, Evaluation], ParameterRates],
    step: int,
    undo: Undo,
    agreement: Agreement = ALONE,
) -> list[Admitted]:
    """Check everything that a step begins from; keep the states whose step may fail.

    What may fail in one process may fail in all.  Raises ``Diverged``, with nothing changed, for a gradient,
    layer statistics or a state that is not finite.
    """
    shares = [seen.restrict(arm.mine.layout) for arm in arms]
    all_rates = [rates_of(arm, seen) for arm in arms]
    extreme = agreement.attempt(
        lambda: [not _is_moderate(arm, mine, step) for arm, mine in zip(arms, shares, strict=True)]
    )
    fallible = [not a.idle and a.method.preconditioner.fallible(a.state.preconditioner, step) for a in arms]
    agreed = agreement.any(*extreme, *fallible)
    moderate, fallible = [not found for found in agreed[: len(arms)]], list(agreed[len(arms) :])
    late = any(_may_fail_late(arm, rates.rate, step) for arm, rates in zip(arms, all_rates, strict=True))
    admitted = []
    for arm, mine, rates, failing, tame in zip(arms, shares, all_rates, fallible, moderate, strict=True):
        state = arm.state
        if late or not all(moderate):
            undo.keep(state.preconditioner, state.on_gradient, state.on_update, state.step, state.damping)
        elif failing:
            undo.keep(state.preconditioner, state.on_gradient)
        bounded = tame and not any(t.fallible for t in arm.method.on_update)
        checked_late = not failing and not tensors_of(state.on_update)
        admitted.append(Admitted(arm, mine, rates, Risk(failing, bounded, checked_late)))
    return admitted


def _is_moderate(arm: Arm, seen: Evaluation, step: int) -> bool:
    """Whether no square of what a step begins from overflows; raises if something is not finite."""
    size = seen.gradient.size()
    if not math.isfinite(size) and not seen.gradient.is_finite():
        raise Diverged(f"step {step}: the gradient is not finite; {culprit(arm.mine, seen.gradient)}")
    wrong = list(non_finite_statistics(seen.layers))
    if wrong:
        raise Diverged(f"step {step}: the layer statistics are not finite: {', '.join(wrong)}")
    what = f'step {step}: the state of "{arm.name}" is not finite; load an earlier checkpoint'
    small = require_finite_state(arm.state, arm.state.watch, what)
    # parameters may be infinite where they do not count, as a mask is; transforms read them
    # what is gathered lives no longer than the step, so the verdict on it is not kept
    watch = arm.state.watch if arm.mine.shards is None else Watch()
    _, tame = watch.inspect(arm.mine.values())
    return math.isfinite(size) and small and tame


def _may_fail_late(arm: Arm, rate: float, step: int) -> bool:
    """Whether something can fail once ``on_update`` has changed its states, or in any transform."""
    method = arm.method
    transforms = (*method.on_gradient, *method.on_update)
    searches = method.step.needs(step) | method.damping.needs(step)
    tame = abs(rate * method.step.rate(step)) <= TAME_RATE
    return not tame or bool(searches.objective) or any(t.fallible for t in transforms)
