"""The part: what it learns from steps and from solves, and what it does while it knows nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.engine.method import Method
from curvlab.engine.state import export, nbytes, restore
from curvlab.errors import ConfigError
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.secants import Pairs, Secant, Which
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.damping import Constant
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.steps import Rate
from curvlab.precision.full import Full
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation, Solve, Step, StepOutcome
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.testing.asserts import assert_close, assert_self_adjoint
from curvlab.testing.problems import DTYPE, normal
from curvlab_lbfgs.lbfgs import Lbfgs, LbfgsState, Source
from plugins.lbfgs.tests.dense import Dense, bfgs, chosen, matrix, vector

N = 12
A = matrix(N, 30.0)
LIKE = vector(torch.zeros(N, dtype=DTYPE))
SOLVE = Lbfgs(memory=4, source=Source.SOLVE)
STEPS = Lbfgs(memory=4)


def context(step: int = 0, damping: float = 0.0) -> Context:
    return Context(step, damping, Full("float64"), torch.Generator())


def seen(gradient: BlockVector) -> Evaluation:
    return Evaluation(1, torch.zeros(()), gradient)


def after(step: Step, before: BlockVector, secants: tuple[Secant, ...] = ()) -> StepOutcome:
    return StepOutcome(seen(before), Solve(step.update, secants=secants), step)


def walk(
    part: Lbfgs, steps: int, *, tell: bool, state: LbfgsState | None = None
) -> tuple[LbfgsState, Tensor]:
    """Steps of random length down ½ θᵀAθ, told the gradient where they lead or not; state and gradient."""
    state = state or part.init(LIKE, context())
    theta = normal(N, seed=0)
    for k in range(steps):
        g = vector(A @ theta)
        part.observe(state, seen(g), context(k))
        part.refresh(state, context(k))
        update = part.apply(state, g, context(k)).x
        alpha = 0.3 + 0.1 * (k % 5)
        theta = theta - alpha * update.flat
        known = vector(A @ theta) if tell else None
        assert part.learn(state, after(Step(update, alpha, gradient=known), g), context(k)) == ()
    g = vector(A @ theta)
    part.observe(state, seen(g), context(steps))
    return state, g.flat


class Image(LinearOperator[BlockVector]):
    """What a part does at one step, as an operator."""

    def __init__(self, part: Lbfgs, state: LbfgsState, ctx: Context) -> None:
        self.part, self.state, self.ctx = part, state, ctx

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return self.part.apply(self.state, v, self.ctx).x


# from steps


@pytest.mark.parametrize("steps", [1, 3, 4, 9])
def test_a_gradient_told_by_the_search_and_one_seen_later_make_the_same_pairs(steps: int) -> None:
    """On one sample."""
    told, g = walk(STEPS, steps, tell=True)
    later, same = walk(STEPS, steps, tell=False)
    assert told.memory.count == later.memory.count == min(steps, 4)
    assert torch.equal(g, same)
    for a, b in zip(export(told)[0].values(), export(later)[0].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_the_pairs_are_steps_and_changes_of_the_gradient() -> None:
    state, _ = walk(STEPS, 3, tell=True)
    S, Y = state.memory.rows[:, state.memory.order]
    assert_close(Y, S @ A, condition=30.0)


def test_its_damping_adds_to_the_curvature_of_the_steps() -> None:
    state, g = walk(STEPS, 3, tell=True)
    S, Y = state.memory.rows[:, state.memory.order]
    pairs = [Secant(vector(s), vector(y + 2.0 * s), 2.0) for s, y in zip(S, Y, strict=True)]
    x = STEPS.apply(state, vector(g), context(damping=2.0)).x.flat
    assert_close(x, bfgs(pairs) @ g, condition=1e4)


@pytest.mark.parametrize("size", [1e-3, 1.0, 50.0])
def test_the_first_update_is_along_the_gradient_and_no_longer_than_one(size: float) -> None:
    g = vector(normal(N, seed=1))
    g.scale_(size / float(g.norm()))
    state = STEPS.init(LIKE, context())
    STEPS.observe(state, seen(g), context())
    assert_close(STEPS.apply(state, g, context()).x.flat, g.flat * min(1.0, 1 / size))


def test_a_rejected_step_empties_the_memory_says_so_once_and_the_next_update_is_along_the_gradient() -> None:
    state, g = walk(STEPS, 3, tell=True)
    rejected = after(Step(vector(g), 0.0, accepted=False), vector(g))
    (event,) = STEPS.learn(state, rejected, context(3))
    assert (event.name, event.step, event.detail) == ("memory-reset", 3, {"pairs": 3})
    STEPS.observe(state, seen(vector(g)), context(4))
    STEPS.refresh(state, context(4))
    x = STEPS.apply(state, vector(g), context(4)).x.flat
    assert_close(x / x.norm(), g / g.norm())
    assert STEPS.learn(state, rejected, context(4)) == ()  # there was nothing to empty


def test_a_rejected_step_is_no_pair_whatever_was_waiting() -> None:
    state, g = walk(STEPS, 2, tell=False)
    STEPS.learn(state, after(Step(vector(g), 1.0), vector(g)), context(2))
    assert state.memory.waiting
    STEPS.learn(state, after(Step(vector(g), 0.0, accepted=False), vector(g)), context(3))
    STEPS.observe(state, seen(vector(2 * g)), context(4))
    assert state.memory.count == 0


# from solves


@pytest.mark.parametrize("damping", [0.0, 0.7])
def test_the_pairs_of_a_solve_replace_those_before(damping: float) -> None:
    state, v = SOLVE.init(LIKE, context()), vector(normal(N, seed=3))
    for seed in (1, 2):
        pairs = chosen(A, 3, damping=0.2, seed=seed)
        assert SOLVE.learn(state, after(Step(v, 1.0), v, pairs), context()) == ()
        x = SOLVE.apply(state, v, context(damping=damping)).x.flat
        assert_close(x, bfgs([p.shifted(damping) for p in pairs]) @ v.flat, condition=1e4)


def test_running_it_keeps_pairs_of_earlier_solves() -> None:
    part, v = replace(SOLVE, running=True), vector(normal(N, seed=3))
    state = part.init(LIKE, context())
    old, new = chosen(A, 3, damping=0.2, seed=1), chosen(A, 2, damping=0.5, seed=2)
    for pairs in (old, new):
        part.learn(state, after(Step(v, 1.0), v, pairs), context())
    x = part.apply(state, v, context(damping=0.3)).x.flat
    assert_close(x, bfgs([p.shifted(0.3) for p in (*old[1:], *new)]) @ v.flat, condition=1e4)


def test_a_rejected_step_does_not_unlearn_a_solve() -> None:
    state, v = SOLVE.init(LIKE, context()), vector(normal(N, seed=3))
    SOLVE.learn(state, after(Step(v, 0.0, accepted=False), v, chosen(A, 3)), context())
    assert state.memory.count == 3


def test_a_solve_without_pairs_leaves_those_before() -> None:
    state, v = SOLVE.init(LIKE, context()), vector(normal(N, seed=3))
    SOLVE.learn(state, after(Step(v, 1.0), v, chosen(A, 3)), context())
    kept = state.memory.rows.clone()
    SOLVE.learn(state, after(Step(v, 1.0), v), context())
    assert torch.equal(state.memory.rows, kept)


def test_before_the_first_solve_it_does_nothing() -> None:
    state, v = SOLVE.init(LIKE, context()), vector(normal(N, seed=3))
    SOLVE.observe(state, seen(v), context())
    assert torch.equal(SOLVE.apply(state, v, context()).x.flat, v.flat)


class Held(CurvatureEstimator[list[Tensor]]):
    """The matrix that its state holds."""

    def needs(self) -> Needs:
        return GRADIENT_ONLY

    def init(self, like: BlockVector, ctx: Context) -> list[Tensor]:
        return [A]

    def observe(self, state: list[Tensor], seen: Evaluation, ctx: Context) -> None:
        return None

    def curvature(self, state: list[Tensor]) -> LinearOperator[BlockVector]:
        return Dense(state[0])


def iterations(inner: Lbfgs | None, matrices: list[Tensor], dampings: list[float]) -> list[int]:
    """Of one solve after the other."""
    part = Iterative(Held(), ConjugateGradients(200, 1e-8), inner=inner)
    state = part.init(LIKE, context())
    found = []
    for k, (C, damping) in enumerate(zip(matrices, dampings, strict=True)):
        state.estimate[0], b, ctx = C, vector(normal(N, seed=k)), context(k, damping)
        part.observe(state, seen(b), ctx)
        part.refresh(state, ctx)
        solve = part.apply(state, b, ctx)
        assert_close(C @ solve.x.flat + damping * solve.x.flat, b.flat, condition=1e8)
        assert part.learn(state, StepOutcome(seen(b), solve, Step(solve.x, 1.0)), ctx) == ()
        found.append(solve.iterations)
    return found


@pytest.mark.parametrize(
    ("dampings", "at_most"),
    [([0.1, 0.1], 2), ([0.1, 0.15], 4), ([0.1, 3.0], N // 2), ([3.0, 0.1], N // 2)],
)
def test_all_pairs_of_one_solve_are_the_inverse_in_the_next(dampings: list[float], at_most: int) -> None:
    """Under another damping nearly so: every pair holds there, but they are not conjugate any more."""
    inner = Lbfgs(memory=205, source=Source.SOLVE, select=Which.ALL)
    first, second = iterations(inner, [A, A], dampings)
    assert first >= N - 1
    assert second <= at_most


def test_of_a_matrix_that_moved_a_little_few_iterations_are_left() -> None:
    moved = A + 0.02 * matrix(N, 3.0, seed=5)
    first, second = iterations(Lbfgs(memory=12, source=Source.SOLVE), [A, moved], [0.1, 0.1])
    assert second <= first // 2
    assert iterations(None, [A, moved], [0.1, 0.1])[1] >= N - 1


def test_inside_a_solve_it_may_learn_from_steps_too() -> None:
    part = Iterative(Held(), ConjugateGradients(50, 1e-8), inner=STEPS)
    state, v = part.init(LIKE, context()), vector(normal(N, seed=1))
    part.observe(state, seen(v), context())
    part.learn(state, after(Step(v, 0.1, gradient=vector(v.flat - 0.1 * A @ v.flat)), v), context())
    assert state.inner.memory.count == 1


# whatever it learned


@pytest.mark.parametrize("damping", [0.0, 0.5])
@pytest.mark.parametrize("part", [STEPS, SOLVE], ids=["steps", "solve"])
def test_it_is_self_adjoint_and_positive_and_changes_nothing_when_it_is_applied(
    part: Lbfgs, damping: float
) -> None:
    state = part.init(LIKE, context())
    if part is STEPS:
        walk(part, 3, tell=True, state=state)
    else:
        part.learn(state, after(Step(LIKE, 1.0), LIKE, chosen(A, 3)), context())
    v, ctx = vector(normal(N, seed=8)), context(damping=damping)
    before, held = v.flat.clone(), {k: t.clone() for k, t in export(state)[0].items()}
    assert_self_adjoint(Image(part, state, ctx), v, psd=True)
    assert not part.varying
    assert torch.equal(v.flat, before)
    assert all(torch.equal(t, held[k]) for k, t in export(state)[0].items())


@pytest.mark.parametrize("refreshed_for", [None, 0.0, 3.0])
def test_the_damping_it_is_applied_with_decides(refreshed_for: float | None) -> None:
    state, g = walk(STEPS, 3, tell=True)
    expected = STEPS.apply(state, vector(g), context(damping=0.5)).x.flat
    if refreshed_for is not None:
        STEPS.refresh(state, context(damping=refreshed_for))
    assert torch.equal(STEPS.apply(state, vector(g), context(damping=0.5)).x.flat, expected)


@pytest.mark.parametrize("tell", [True, False])
def test_a_restored_state_goes_on_as_the_one_it_is_of(tell: bool) -> None:
    state, _ = walk(STEPS, 6, tell=tell)
    STEPS.learn(state, after(Step(LIKE, 1.0), LIKE), context())  # with a step waiting
    twin = STEPS.init(LIKE, context())
    restore(twin, *export(state))
    _, g = walk(STEPS, 3, tell=tell, state=state)
    _, other = walk(STEPS, 3, tell=tell, state=twin)
    assert torch.equal(g, other)


@pytest.mark.parametrize("m", [1, 16])
@pytest.mark.parametrize(("source", "vectors"), [(Source.SOLVE, 0), (Source.STEPS, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_holds_two_vectors_a_pair_and_the_small_matrices(
    dtype: torch.dtype, source: Source, vectors: int, m: int
) -> None:
    n = 1000
    ctx = replace(context(), backend=Full(str(dtype).removeprefix("torch.")))  # type: ignore[arg-type]
    state = Lbfgs(memory=m, source=source).init(vector(torch.zeros(n, dtype=dtype)), ctx)
    rows = m + vectors // 2
    assert nbytes(state) == (2 * m + vectors) * n * dtype.itemsize + 8 * (2 * rows * rows + 2 * rows)


def test_every_parameter_is_treated_and_no_layer_statistics_asked_for() -> None:
    for shape in ((), (1,), (3, 4), (2, 3, 4, 5)):
        assert STEPS.refuses(Block("any", ("any",), torch.Size(shape))) is None
    assert STEPS.needs(0) == SOLVE.needs(0)
    assert not STEPS.needs(0).objective


# settings


def test_what_it_wants_of_a_solve() -> None:
    assert STEPS.pairs() is None
    assert SOLVE.pairs() == Pairs(4, Which.LAST)
    assert replace(SOLVE, select=Which.EVEN).pairs() == Pairs(4, Which.EVEN)


def alone() -> Method:
    return Method(SOLVE, Constant(0.0), Rate(1.0))


def all_of_a_long_solve() -> Iterative:
    return Iterative(Held(), ConjugateGradients(100), inner=replace(SOLVE, select=Which.ALL))


REFUSED: dict[str, tuple[Any, str]] = {
    "no memory": (lambda: Lbfgs(memory=0), "memory = 0"),
    "steps that run": (lambda: Lbfgs(running=True), "running = true"),
    "a choice among steps": (lambda: Lbfgs(select=Which.FIRST), 'select = "first"'),
    "nobody to learn from": (alone, "works only inside a solve"),
    "all pairs in too small a memory": (all_of_a_long_solve, "room for 4, and krylov makes up to 103"),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_meant_is_refused(why: str) -> None:
    make, says = REFUSED[why]
    with pytest.raises(ConfigError, match=says):
        make()
