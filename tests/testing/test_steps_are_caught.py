"""Every check of solvers, damping, steps, transforms, schedules and samplers finds a culprit."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.linalg.cg import Stop
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.damping import LambdaState, LevenbergMarquardt
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.samplers import Uniform, UniformState
from curvlab.parts.schedules import Linear
from curvlab.parts.steps import Armijo, QuadraticModel, QuadraticState, Rate
from curvlab.parts.transforms import AverageState, Clip, Ema, Momentum
from curvlab.protocols.evidence import Line, Step
from curvlab.protocols.needs import Needs
from curvlab.testing.conformance import SUITES, SamplerConformance
from tests.testing.caught import Broken, assert_caught, assert_every_check_is_shown, broken

CALLS = itertools.count()


def seeded() -> float:
    """A factor next to 1 that depends on torch's global seed, and draws nothing."""
    return 1 + 1e-15 * (torch.initial_seed() % 2)


def unequal(base: type, *arguments: Any) -> Broken:
    made = broken(base, __eq__=lambda self, other: self is other, __hash__=object.__hash__)
    return Broken("settings", made(*arguments))


def draw() -> None:
    torch.rand(())


def switch() -> None:
    torch.use_deterministic_algorithms(True)


# Krylov solvers


def solver(check: str, then: Any = None, also: tuple[str, ...] = (), why: str = "", **methods: Any) -> Broken:
    """Conjugate gradients that keep iterates; ``then`` makes another solve of theirs."""
    if then is not None:

        def solve(self: Any, A: Any, b: Any, *, x0: Any = None, M: Any = None, pairs: Any = None) -> Any:
            return then(lambda **more: CG.solve(A, b, **{"x0": x0, "M": M, "pairs": pairs, **more}), A, b, x0)

        methods["solve"] = solve
    return Broken(check, broken(ConjugateGradients, **methods)(grid=1.3), also, why)


CG = ConjugateGradients(grid=1.3)


def then_draw(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    draw()
    return solve()


def then_switch(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    switch()
    return solve()


def then_seeded(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    found.x.scale_(seeded())
    return found


def two_iterations(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    return (
        ConjugateGradients(max_iterations=2, grid=1.3).solve(A, b, x0=x0)
        if A.count == 0 and b.layout.size < 50
        else solve()
    )


def nothing_at_the_limit(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    if found.reason is not Stop.LIMIT:
        return found
    x = b.zeros_like()
    return replace(found, x=x, iterates=(replace(found.iterates[-1], x=x, bend=0.0),))


def from_zero(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    return solve(x0=None)


def wiping(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    if x0 is not None:
        x0.zero_()
    return found


def unpreconditioned(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    return solve(M=None)


def spoilt(reason: Stop) -> Any:
    def then(solve: Any, A: Any, b: Any, x0: Any) -> Any:
        found = solve()
        return replace(found, x=found.x * math.nan) if found.reason is reason else found

    return then


def called_convergence(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    return replace(found, reason=Stop.CONVERGED) if found.reason is Stop.NONFINITE else found


def never_zero(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    found.x.flat.add_(1e-30 * (float(b.norm()) == 0))
    return found


def but_the_last(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    return replace(found, iterates=found.iterates[:-1])


def longer_pairs(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    return replace(found, secants=tuple(replace(p, y=p.y * 2.0) for p in found.secants))


def in_double(solve: Any, A: Any, b: Any, x0: Any) -> Any:
    found = solve()
    return replace(found, x=found.x.to(torch.float64)) if b.dtype is torch.float32 else found


KRYLOV = [
    unequal(ConjugateGradients),
    solver("random_state", then_draw),
    solver("determinism", then_seeded),
    solver("autograd", then_switch),
    solver("obligations", limit=property(lambda self: 52.0)),
    solver("solves", two_iterations),
    solver("limit", limit=property(lambda self: 12)),
    solver("descends", nothing_at_the_limit),
    solver("start", from_zero),
    solver("arguments", wiping),
    solver("preconditioner", unpreconditioned),
    solver("varying", varying=True),
    solver("negative_curvature", spoilt(Stop.CURVATURE)),
    solver("nonfinite", called_convergence),
    solver("zero", never_zero),
    solver("iterates", but_the_last),
    solver("pairs", longer_pairs),
    solver("float32", in_double),
]

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


def normalised(search: Any, state: Any, line: Line, step: int) -> Step:
    return Step(line.update, 0.1 * line.rate / float(line.update.norm()))


def deaf(search: Any, state: Any, line: Line, step: int) -> Step:
    return Step(line.update, 0.1)


def stretching(search: Any, state: Any, line: Line, step: int) -> Step:
    found = search(state, line, step)
    line.update.scale_(1.0 + 1e-12)
    return found


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
    rule("finite", normalised, base=Rate(0.1)),
    rule("budget", needs=lambda self, step: Needs(losses=1)),
    rule("rate", deaf, base=Rate(0.1)),
    rule("arguments", stretching),
    rule("remembers", holding, base=QuadraticModel()),
]

# transforms


def transform(
    check: str, then: Any = None, also: tuple[str, ...] = (), why: str = "", base: Any = None, **methods: Any
) -> Broken:
    """A transform that goes otherwise than ``base``'s, which is momentum."""
    base = base or Momentum(0.5)
    if then is not None:
        methods["__call__"] = lambda self, state, v, where: then(base, state, v, where)
    made = broken(type(base), **methods)
    return Broken(check, made(**{f: getattr(base, f) for f in base.__dataclass_fields__}), also, why)


def drawing(base: Any, state: Any, v: Any, where: Any) -> Any:
    draw()
    return base(state, v, where)


def seeded_vector(base: Any, state: Any, v: Any, where: Any) -> Any:
    return base(state, v, where).owned().scale_(seeded())


def switching(base: Any, state: Any, v: Any, where: Any) -> Any:
    switch()
    return base(state, v, where)


@dataclass
class LateAverage:
    average: BlockVector | None = None
    count: int = 0


def late_average(base: Any, state: Any, v: Any, where: Any) -> Any:
    if state.average is None:
        state.average = v.zeros_like()
    return base(state, v, where)


@dataclass
class UnsavedCount(AverageState):
    count: int = field(default=0, metadata={"transient": True})


def doubled(base: Any, state: Any, v: Any, where: Any) -> Any:
    return base(state, v, where).to(torch.float64)


def in_place(base: Any, state: Any, v: Any, where: Any) -> Any:
    return v.scale_((base.norm / v.norm()).clamp(max=1.0))


def not_lent(base: Any, state: Any, v: Any, where: Any) -> Any:
    state.combine_(base.beta, v)
    return state


@dataclass
class Last:
    """The vector before."""

    vector: BlockVector


def difference(base: Any, state: Any, v: Any, where: Any) -> Any:
    found = v - state.vector
    state.vector = v
    return found


def wiping_the_gradient(base: Any, state: Any, v: Any, where: Any) -> Any:
    found = base(state, v, where)
    where.gradient.flat.zero_()
    return found


def below_the_factors(base: Any, state: Any, v: Any, where: Any) -> Any:
    return BlockVector(v.layout, 2.0 * v._flat)


def unit_length(base: Any, state: Any, v: Any, where: Any) -> Any:
    return v * (1.0 / v.norm())


TRANSFORMS = [
    unequal(Momentum),
    transform("random_state", drawing),
    transform("determinism", seeded_vector),
    transform("autograd", switching),
    transform(
        "eager",
        late_average,
        ("resume",),
        "a fresh state cannot take what it has no tensor for",
        base=Ema(),
        init=lambda self, like: LateAverage(),
    ),
    transform("resume", base=Ema(), init=lambda self, like: UnsavedCount(like.zeros_like(), 0)),
    transform("obligations", doubled),
    transform("borrowed", in_place, base=Clip(0.5)),
    transform("state_is_lent", not_lent),
    transform("remembers", difference, init=lambda self, like: Last(like.zeros_like())),
    transform("surroundings", wiping_the_gradient),
    transform("factored", below_the_factors),
    transform("zero", unit_length),
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

# samplers


def sampler(
    check: str, then: Any = None, also: tuple[str, ...] = (), why: str = "", **methods: Any
) -> Broken:
    """Draws that are made into others."""
    if then is not None:
        methods["draw"] = lambda self, state: then(state, Uniform.draw(self, state))
    return Broken(check, broken(Uniform, **methods)(), also, why)


def drawn_globally(state: Any, found: Any) -> Any:
    draw()
    return found


def turned_by_seed(state: Any, found: Any) -> Any:
    turned = found.gradient.roll(torch.initial_seed() % 2)
    return replace(found, gradient=turned)


def switched_draw(state: Any, found: Any) -> Any:
    switch()
    return found


@dataclass
class LateUniform(UniformState):
    seen: Tensor | None = None


def counted(state: Any, found: Any) -> Any:
    state.seen = found.gradient.clone()
    return found


@dataclass
class UnsavedUniform(UniformState):
    drawn: int = field(default=0, metadata={"transient": True})


def starting(kind: Any) -> Any:
    def init(self: Any, size: int, batch_size: int, seed: int) -> Any:
        return kind(size=size, batch_size=min(batch_size, size), seed=seed, drawn=0)

    return init


def as_floats(state: Any, found: Any) -> Any:
    return replace(found, gradient=found.gradient.double())


def from_one(state: Any, found: Any) -> Any:
    return replace(found, acceptance=found.acceptance + 1)


SHARED = torch.Generator().manual_seed(0)


def from_one_generator(state: Any, found: Any) -> Any:
    return replace(found, gradient=torch.randint(0, state.size, (4,), generator=SHARED))


BUFFER = torch.zeros(1000, dtype=torch.int64)


def in_one_buffer(state: Any, found: Any) -> Any:
    n = len(found.curvature)
    BUFFER[:n] = found.curvature
    return replace(found, curvature=BUFFER[:n])


SAMPLERS = [
    unequal(Uniform),
    sampler("random_state", drawn_globally),
    sampler("determinism", turned_by_seed),
    sampler("autograd", switched_draw),
    sampler(
        "eager",
        counted,
        ("resume",),
        "a fresh state cannot take what it has no tensor for",
        init=starting(LateUniform),
    ),
    sampler("resume", init=starting(UnsavedUniform)),
    sampler("obligations", as_floats),
    sampler("range", from_one),
    sampler(
        "seed", from_one_generator, ("determinism", "resume"), "what no state holds, no state brings back"
    ),
    sampler("needs", needs=lambda self, state: Needs(variance=state.drawn // state.batch_size % 2 == 1)),
    sampler("draws_are_kept", in_one_buffer),
]

EVERY = {
    "krylov": KRYLOV,
    "damping": DAMPING,
    "step": STEPS,
    "transform": TRANSFORMS,
    "schedule": SCHEDULES,
    "sampler": SAMPLERS,
}


@pytest.mark.parametrize(
    ("kind", "case"), [pytest.param(k, c, id=f"{k} {c}") for k, cases in EVERY.items() for c in cases]
)
def test_a_part_that_breaks_a_law_is_caught_by_that_check_alone(kind: str, case: Broken) -> None:
    assert_caught(kind, case)


@pytest.mark.parametrize("kind", EVERY)
def test_every_check_is_shown_to_catch_something(kind: str) -> None:
    assert_every_check_is_shown(kind, EVERY[kind], elsewhere=("disjoint",) if kind == "sampler" else ())


def test_a_claim_that_samples_are_disjoint_is_held_against_the_draws() -> None:
    class Claiming(SamplerConformance):
        disjoint = (("gradient", "acceptance"),)

    assert Claiming.of(Uniform()).run().failed == ("disjoint",)
    assert SamplerConformance.of(Uniform()).run()["disjoint"].result == "skip"


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("krylov", CG),
        ("damping", LevenbergMarquardt()),
        ("step", Armijo()),
        ("step", QuadraticModel()),
        ("transform", Momentum()),
        ("schedule", Linear(1.0, 0.1, 10)),
        ("sampler", Uniform()),
    ],
    ids=lambda v: v if isinstance(v, str) else type(v).__name__,
)
def test_a_part_in_order_passes(kind: str, part: Any) -> None:
    assert not SUITES[kind].of(part).run().failed


def test_a_solution_that_is_not_finite_is_no_solution() -> None:
    case = solver("nonfinite", spoilt(Stop.NONFINITE))
    report = SUITES["krylov"].of(case.part).run()
    assert report.failed == ("nonfinite",)
