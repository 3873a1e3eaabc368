"""Krylov solves as a preconditioner: exact up to the stopping rule, warm or cold."""

from __future__ import annotations

import pytest
import torch

from curvlab.linalg.cg import Stop
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.identity import Identity
from curvlab.parts.inverses import Eigen
from curvlab.parts.inverted import Inverted
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.protocols.needs import Needs
from tests.parts.layers import LAYERS, Held, LastFactors, evidence
from tests.parts.vectors import LAYOUT, Matrix, context, outcome, passed, spd, vector

EXACT = ConjugateGradients(max_iterations=200, tolerance=1e-12)
LAMBDA = 0.5


def solution(b: BlockVector, damping: float = LAMBDA) -> torch.Tensor:
    return torch.linalg.solve(spd() + damping * torch.eye(LAYOUT.size, dtype=b.dtype), b.flat)


@pytest.mark.parametrize("damping", [0.0, LAMBDA])
def test_a_solve_is_exact_up_to_its_tolerance(damping: float) -> None:
    part, v = Iterative(Held(), EXACT), vector(1)
    solve = part.apply(part.init(v, context()), v, context(damping=damping))
    torch.testing.assert_close(solve.x.flat, solution(v, damping))
    assert solve.reason is Stop.CONVERGED
    assert 0 < solve.iterations <= LAYOUT.size + 2


@pytest.mark.parametrize("tolerance", [0.5, 1e-3, 1e-9])
def test_the_residual_it_stops_at_is_below_the_tolerance(tolerance: float) -> None:
    part, v = Iterative(Held(), ConjugateGradients(100, tolerance)), vector(1)
    x = part.apply(part.init(v, context()), v, context(damping=LAMBDA)).x
    residual = v.flat - (spd() + LAMBDA * torch.eye(LAYOUT.size, dtype=v.dtype)) @ x.flat
    assert float(residual.norm() / v.norm()) <= tolerance * (1 + 1e-9)


def test_it_stops_at_its_limit_and_says_so() -> None:
    part, v = Iterative(Held(), ConjugateGradients(3, 1e-12)), vector(1)
    solve = part.apply(part.init(v, context()), v, context())
    assert (solve.iterations, solve.reason) == (3, Stop.LIMIT)


@pytest.mark.parametrize("limit", [1, 5, 49, 50, 120])
def test_a_solve_makes_no_more_products_than_it_declares(limit: int) -> None:
    krylov, b = ConjugateGradients(limit, 1e-300), vector(1)
    A = Matrix(spd())
    krylov.solve(A, b, x0=vector(2))
    assert A.count <= krylov.limit


# warm starts


def test_a_warm_start_is_the_fraction_of_the_last_solution() -> None:
    part, v = Iterative(Held(), EXACT, warm_start=0.7), vector(1)
    state = part.init(v, context())
    assert torch.equal(state.start.flat, torch.zeros(LAYOUT.size, dtype=v.dtype))
    x = part.apply(state, v, context(damping=LAMBDA)).x
    part.learn(state, outcome(x), context())
    torch.testing.assert_close(state.start.flat, 0.7 * x.flat)


def test_a_solve_that_begins_at_its_solution_needs_no_iteration() -> None:
    part, v = Iterative(Held(), ConjugateGradients(200, 1e-9), warm_start=1.0), vector(1)
    state, ctx = part.init(v, context()), context(damping=LAMBDA)
    cold = part.apply(state, v, ctx)
    part.learn(state, outcome(cold.x), ctx)
    warm = part.apply(state, v, ctx)
    assert cold.iterations > 0
    assert warm.iterations == 0
    torch.testing.assert_close(warm.x.flat, cold.x.flat)


def test_warm_or_cold_the_solution_is_the_same() -> None:
    part, v = Iterative(Held(), EXACT, warm_start=0.9), vector(1)
    state, ctx = part.init(v, context()), context(damping=LAMBDA)
    for k in range(3):
        b = vector(k)
        x = part.apply(state, b, ctx).x
        torch.testing.assert_close(x.flat, solution(b))
        part.learn(state, outcome(x), ctx)


def test_after_a_rejected_step_a_solve_begins_from_zero() -> None:
    part, v = Iterative(Held(), EXACT, warm_start=0.9), vector(1)
    state = part.init(v, context())
    part.learn(state, outcome(v), context())
    part.learn(state, outcome(v, accepted=False), context())
    assert torch.equal(state.start.flat, torch.zeros(LAYOUT.size, dtype=v.dtype))


def test_a_cold_start_holds_no_vector() -> None:
    part, v = Iterative(Held(), EXACT), vector(1)
    state = part.init(v, context())
    part.learn(state, outcome(v), context())
    assert state.start is None


def test_apply_changes_neither_vector_nor_start() -> None:
    part, v = Iterative(Held(), EXACT, warm_start=0.5), vector(1)
    state = part.init(v, context())
    part.learn(state, outcome(vector(2)), context())
    kept, start = v.flat.clone(), state.start.flat.clone()
    part.apply(state, v, context())
    assert torch.equal(v.flat, kept)
    assert torch.equal(state.start.flat, start)


# an inner preconditioner


def test_solving_with_the_inverse_of_the_operator_takes_one_iteration() -> None:
    inner = Inverted(LastFactors(), Eigen())
    part = Iterative(LastFactors(), ConjugateGradients(50, 1e-9), inner=inner)
    v, ctx = vector(3, LAYERS), context(damping=LAMBDA)
    state = part.init(v, ctx)
    part.observe(state, evidence(0), ctx)
    part.refresh(state, ctx)
    helped = part.apply(state, v, ctx)
    alone = Iterative(LastFactors(), ConjugateGradients(50, 1e-9)).apply(state, v, ctx)
    assert helped.iterations == 1 < alone.iterations
    torch.testing.assert_close(helped.x.flat, alone.x.flat, rtol=1e-6, atol=1e-7)


def test_the_inner_preconditioner_changes_the_path_not_the_solution() -> None:
    part, v = Iterative(Held(), EXACT, inner=Identity()), vector(1)
    x = part.apply(part.init(v, context()), v, context(damping=LAMBDA)).x
    torch.testing.assert_close(x.flat, solution(v))


def test_needs_and_refusals_are_those_of_estimate_and_inner_preconditioner() -> None:
    cg = ConjugateGradients(7)
    assert Iterative(GaussNewton(), cg).needs(0) == Needs(implicit=True, products=cg.limit)
    inner = Inverted(LastFactors(), Eigen(), observe_every=2)
    both = Iterative(GaussNewton(), cg, inner=inner)
    assert both.needs(0) == Needs(implicit=True, products=cg.limit) | inner.needs(0)
    assert both.needs(1) == Needs(implicit=True, products=cg.limit) | inner.needs(1)
    assert both.joins("0")
    assert not Iterative(GaussNewton(), cg).joins("0")


def test_the_gauss_newton_estimate_is_the_operator_of_the_present_pass() -> None:
    part, v = Iterative(GaussNewton(), EXACT), vector(1)
    state = part.init(v, context())
    for seed in (4, 5):
        G = Matrix(spd(seed))
        part.observe(state, passed(v, ggn=G), context())
        x = part.apply(state, v, context(damping=LAMBDA)).x
        damped = spd(seed) + LAMBDA * torch.eye(LAYOUT.size, dtype=v.dtype)
        torch.testing.assert_close(x.flat, torch.linalg.solve(damped, v.flat))
