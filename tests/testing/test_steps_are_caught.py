"""Every check of the suites of damping, step rules and schedules finds a part that breaks its law."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.parts.damping import LambdaState, LevenbergMarquardt
from curvlab.parts.schedules import Linear
from curvlab.parts.steps import Armijo, QuadraticModel, QuadraticState, Rate
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Needs
from curvlab.protocols.step import StepRule
from tests.testing.caught import (
    CALLS,
    Broken,
    broken,
    draw,
    frame,
    seeded,
    switch,
    unequal,
)

# damping


def policy(check: str, also: tuple[str, ...] = (), why: str = "", **methods: Any) -> Broken:
    return Broken(check, broken(LevenbergMarquardt, **methods)(), also, why)


def at(then: Any) -> Any:
    def method(self: Any, state: Any, step: int) -> float:
        then()
        return LevenbergMarquardt.at(self, state, step)

    return method


@dataclass
class Late(LambdaState):
    """Gets a tensor when it first learns."""

    seen: Tensor | None = None


def learn_late(self: Any, state: Any, what: Any, step: int) -> None:
    LevenbergMarquardt.learn(self, state, what, step)
    state.seen = torch.ones(())


@dataclass
class Unsaved(LambdaState):
    damping: float = field(default=1.0, metadata={"transient": True})
    ratio: float = math.nan


def turned_round(self: Any, state: Any, what: Any, step: int) -> None:
    before = state.damping
    LevenbergMarquardt.learn(self, state, what, step)
    state.damping = min(max(before * before / state.damping, 1e-6), 1e6)


def drifting(self: Any, state: Any, step: int) -> float:
    state.damping *= 1.0001
    return state.damping


DAMPING = [
    unequal(LevenbergMarquardt),
    policy("random_state", at=at(draw)),
    policy("determinism", at=lambda self, state, step: state.damping * seeded()),
    policy("autograd", at=at(switch)),
    policy(
        "eager",
        ("resume",),
        "a fresh state cannot take what it has no tensor for",
        init=lambda self: Late(1.0, math.nan),
        learn=learn_late,
    ),
    policy("resume", init=lambda self: Unsaved(1.0, math.nan)),
    policy("obligations", needs=lambda self, step: Needs(products=1, losses=1, gradients=next(CALLS))),
    Broken("finite", LevenbergMarquardt(factor=1e10, maximum=math.inf)),
    policy("direction", learn=turned_round),
    policy("pure", at=drifting),
]

# step rules


def rule(
    check: str, then: Any = None, also: tuple[str, ...] = (), why: str = "", base: Any = None, **methods: Any
) -> Broken:
    """A search that goes otherwise than ``base``'s, which is Armijo's."""
    base = base or Armijo()
    if then is not None:
        methods["search"] = lambda self, state, line, step: then(base.search, state, line, step)
    made = broken(type(base), **methods)
    return Broken(check, made(**{f: getattr(base, f) for f in base.__dataclass_fields__}), also, why)


def drawn(search: Any, state: Any, line: Line, step: int) -> Step:
    draw()
    return search(state, line, step)


def seeded_step(search: Any, state: Any, line: Line, step: int) -> Step:
    found = search(state, line, step)
    return replace(found, alpha=found.alpha * seeded())


def switched(search: Any, state: Any, line: Line, step: int) -> Step:
    switch()
    return search(state, line, step)


def late_previous(search: Any, state: Any, line: Line, step: int) -> Step:
    if state.previous is None:
        state.previous = line.update.zeros_like()
    return search(state, line, step)


@dataclass
class UnsavedPrevious(QuadraticState):
    previous: BlockVector | None = field(default=None, metadata={"transient": True})


def holding(search: Any, state: Any, line: Line, step: int) -> Step:
    found = search(state, line, step)
    state.previous = found.update
    return found


def a_thousand_times_too_far(search: Any, state: Any, line: Line, step: int) -> Step:
    found = search(state, line, step)
    return replace(found, alpha=1000 * found.alpha)


def never(search: Any, state: Any, line: Line, step: int) -> Step:
    return replace(search(state, line, step), alpha=0.0, accepted=False)


def unless_it_is_higher(search: Any, state: Any, line: Line, step: int) -> Step:
    """NaN is not higher than anything."""
    alpha = line.rate
    for _ in range(20 if line.slope < 0 else 0):
        if not line.loss_of(line.update, alpha) > line.start() + 1e-4 * alpha * line.slope:
            return Step(line.update, alpha)
        alpha *= 0.5
    return Step(line.update, 0.0, accepted=False)


def normalized(search: Any, state: Any, line: Line, step: int) -> Step:
    return Step(line.update, 0.1 * line.rate / float(line.update.norm()))


def deaf(search: Any, state: Any, line: Line, step: int) -> Step:
    return Step(line.update, 0.1)


def stretching(search: Any, state: Any, line: Line, step: int) -> Step:
    found = search(state, line, step)
    line.update.scale_(1.0 + 1e-12)
    return found


@dataclass(frozen=True)
class Shrinking(StepRule[None]):
    """Along a path, half the radius until the loss falls."""

    follows = True
    halvings: int = 40

    def needs(self, step: int) -> Needs:
        return Needs(losses=self.halvings)

    def rate(self, step: int) -> float:
        return 1.0

    def init(self, like: BlockVector) -> None:
        return None

    def search(self, state: None, line: Line, step: int) -> Step:
        assert line.path is not None, "a rule that follows a path is given one"
        for k in range(self.halvings):
            update = line.path.at(line.path.damping(line.rate * line.path.longest * 0.5**k))
            if line.loss_of(update, 1.0) < line.start():
                return Step(update, 1.0)
        return Step(line.update, 0.0, accepted=False)


def the_longest(search: Any, state: Any, line: Line, step: int) -> Step:
    assert line.path is not None
    return Step(line.path.at(line.path.least), 1.0)


def less_later(self: Any, step: int) -> Needs:
    return Needs(losses=0 if step else 100)


def halved_uphill(search: Any, state: Any, line: Line, step: int) -> Step:
    return Step(line.update, 0.1 * line.rate * (0.5 if line.slope > 0 else 1.0))


STEPS = [
    unequal(Armijo),
    rule("random_state", drawn),
    rule("determinism", seeded_step),
    rule("autograd", switched),
    rule(
        "eager",
        late_previous,
        ("resume",),
        "a fresh state cannot take what it has no tensor for",
        base=QuadraticModel(),
        init=lambda self, like: QuadraticState(None),
    ),
    rule("resume", base=QuadraticModel(), init=lambda self, like: UnsavedPrevious(like.zeros_like())),
    rule("obligations", rate=lambda self, step: 1),
    rule("descends", a_thousand_times_too_far),
    rule("accepts", never),
    rule("hopeless", unless_it_is_higher),
    rule("finite", normalized, base=Rate(0.1), prescribed=False),
    rule("budget", needs=lambda self, step: Needs(losses=1)),
    rule("budget", needs=less_later),
    rule(
        "descends",
        the_longest,
        ("hopeless",),
        "what takes any step takes those that rise",
        base=Shrinking(),
    ),
    rule("rate", deaf, base=Rate(0.1), prescribed=False),
    rule("prescribed", halved_uphill, base=Rate(0.1)),
    rule("arguments", stretching),
    rule("remembers", holding, base=QuadraticModel()),
]

# schedules


def schedule(check: str, value: Any) -> Broken:
    made = broken(Linear, __call__=lambda self, step: value(self, step))
    return Broken(check, made(1.0, 0.1, 10))


def after(then: Any) -> Any:
    def value(self: Any, step: int) -> float:
        then()
        return Linear.__call__(self, step)

    return value


LAST = [10**9]


def more_on_the_way_back(self: Any, step: int) -> float:
    back, LAST[0] = step < LAST[0], step
    return Linear.__call__(self, step) + (0.01 if back else 0.0)


SCHEDULES = [
    unequal(Linear, 1.0, 0.1, 10),
    schedule("random_state", after(draw)),
    schedule("determinism", lambda self, step: Linear.__call__(self, step) * seeded()),
    schedule("autograd", after(switch)),
    schedule("number", lambda self, step: self.start + step if step < 10**6 else math.inf),
    schedule("without_memory", more_on_the_way_back),
]

EVERY = {
    "damping": DAMPING,
    "step": STEPS,
    "schedule": SCHEDULES,
}

SOUND = [
    ("damping", LevenbergMarquardt()),
    ("step", Armijo()),
    ("step", QuadraticModel()),
    ("step", Shrinking()),
    ("schedule", Linear(1.0, 0.1, 10)),
]

caught, shown, passes = frame(EVERY, SOUND)
test_a_part_that_breaks_a_law_is_caught_by_that_check_alone = caught
test_every_check_is_shown_to_catch_something = shown
test_a_part_in_order_passes = passes
