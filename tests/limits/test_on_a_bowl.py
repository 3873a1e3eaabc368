"""On a quadratic with exact curvature the model is the loss: one step lands, and the ratio is one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.linalg.cg import conjugate_gradients
from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.supervised import objective
from curvlab.parts.damping import Constant, LevenbergMarquardt
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.identity import Identity
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.steps import Armijo, QuadraticModel, Rate
from curvlab.parts.transforms import WeightDecay
from curvlab.precision.full import Full
from curvlab.protocols.needs import Needs
from curvlab.protocols.report import Event
from curvlab.testing.asserts import assert_close, assert_same
from curvlab.testing.problems import Problem, bowl, classifier
from curvlab.testing.reference import damped_solve, ggn, gradient, mean_loss, reference_context

#: torch compiles some of its own derivatives when forward mode is first used, and deprecates how it does
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")

EXACT = Iterative(GaussNewton(), ConjugateGradients(max_iterations=100, tolerance=1e-14))
NEWTON = Method(EXACT, Constant(0.0), Rate(1.0))


def optimizer(method: Method, model: nn.Module, events: list[Event] | None = None) -> CurvatureOptimizer:
    listen = None if events is None else events.append
    return CurvatureOptimizer(method, model, backend=Full("float64"), on_event=listen)


def dense_problem(problem: Problem, model: nn.Module) -> tuple[Tensor, Tensor]:
    """G and ∇L, dense, at the model's parameters."""
    blocks = problem.blocks(model)
    G = ggn(model, problem.criterion, problem.inputs, problem.targets, blocks)
    return G, gradient(mean_loss(problem.criterion, model(problem.inputs), problem.targets), blocks)


def packed(problem: Problem, model: nn.Module) -> Tensor:
    return problem.blocks(model).read().flat


def loss(problem: Problem, model: nn.Module) -> float:
    return float(mean_loss(problem.criterion, model(problem.inputs), problem.targets).detach())


def test_one_newton_step_lands_on_the_minimum() -> None:
    problem = bowl()
    model = problem.model()
    G, _ = dense_problem(problem, model)
    optimizer(NEWTON, model).step(problem.objective(model))
    found = packed(problem, model).view(problem.solution.shape)
    # CG stopped at a relative residual of 1e-14, which the condition of G carries into the solution
    assert_close(found, problem.solution, condition=10 * float(torch.linalg.cond(G)))


@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_a_damped_step_solves_the_damped_system(damping: float) -> None:
    problem = classifier("cross-entropy", 8)
    model = problem.model()
    G, g = dense_problem(problem, model)
    before = packed(problem, model)
    optimizer(replace(NEWTON, damping=Constant(damping)), model).step(problem.objective(model))
    condition = float(torch.linalg.eigvalsh(G)[-1]) / damping + 1
    moved = before - packed(problem, model)
    assert_close(moved, damped_solve(G, damping, g), dimension=100, condition=condition)


@pytest.mark.parametrize("damping", [0.0, 0.1, 10.0])
def test_the_reduction_ratio_on_a_quadratic_is_one_however_damped(damping: float) -> None:
    problem = bowl()
    model = problem.model()
    rule = LevenbergMarquardt(initial=max(damping, 1e-8))
    ours = optimizer(replace(NEWTON, damping=rule), model)
    ours.step(problem.objective(model))
    assert ours.last is not None
    assert ours.last.reduction_ratio == pytest.approx(1.0, abs=1e-10)


@pytest.mark.parametrize("lr", [1.0, 0.3])
def test_the_quadratic_model_takes_the_best_step_along_its_update(lr: float) -> None:
    """α = gᵀg / gᵀGg along the gradient itself, and lr of it."""
    problem = bowl()
    model = problem.model()
    G, g = dense_problem(problem, model)
    before = packed(problem, model)
    method = Method(Identity(), Constant(0.0), QuadraticModel(lr=lr, momentum=False))
    optimizer(method, model).step(problem.objective(model))
    best = lr * float(g @ g) / float(g @ G @ g)
    assert_close(before - packed(problem, model), best * g, dimension=100)


def test_the_quadratic_model_with_the_exact_direction_lands_too() -> None:
    problem = bowl()
    model = problem.model()
    G, _ = dense_problem(problem, model)
    optimizer(replace(NEWTON, step=QuadraticModel()), model).step(problem.objective(model))
    found = packed(problem, model).view(problem.solution.shape)
    assert_close(found, problem.solution, condition=10 * float(torch.linalg.cond(G)))


def test_the_quadratic_model_with_momentum_is_conjugate_gradients() -> None:
    """The best point of span{gradient, last step}, step after step, is CG's: the minimum after D steps."""
    problem = bowl(inputs=3, outputs=1)
    model = problem.model()
    blocks, start = problem.blocks(model), packed(problem, model)
    seen = problem.objective(model).evaluate(Needs(products=1), blocks, reference_context())
    assert seen.ggn is not None
    frozen = [
        conjugate_gradients(seen.ggn, seen.gradient, max_iterations=k, tolerance=1e-300).x.flat.clone()
        for k in range(1, 5)
    ]
    G, _ = dense_problem(problem, model)
    ours = optimizer(Method(Identity(), Constant(0.0), QuadraticModel()), model)
    for expected in frozen:
        ours.step(problem.objective(model))
        assert_close(start - packed(problem, model), expected, condition=100 * float(torch.linalg.cond(G)))
    assert_close(
        packed(problem, model), problem.solution.flatten(), condition=100 * float(torch.linalg.cond(G))
    )


def test_the_quadratic_model_counts_the_damping_as_curvature() -> None:
    problem = bowl()
    model = problem.model()
    G, g = dense_problem(problem, model)
    before = packed(problem, model)
    method = Method(Identity(), Constant(0.7), QuadraticModel(momentum=False))
    optimizer(method, model).step(problem.objective(model))
    best = float(g @ g) / (float(g @ G @ g) + 0.7 * float(g @ g))
    assert_close(before - packed(problem, model), best * g, dimension=100)


def test_levenberg_marquardt_follows_its_rule_over_a_whole_run() -> None:
    """λ rises by the factor after a ratio below ``low``, falls after one above ``high``, else stays."""
    problem = classifier("cross-entropy", 8)
    model = problem.model()
    rule = LevenbergMarquardt(initial=1e-2, factor=2.0)
    # a rate of 6 overshoots: all three cases occur, which the last line makes sure of
    ours = optimizer(Method(EXACT, rule, Rate(6.0)), model)
    seen, wanted = set(), rule.initial
    for _ in range(12):
        ours.step(problem.objective(model))
        last = ours.last
        assert last is not None
        assert last.damping == pytest.approx(wanted, rel=1e-12)
        ratio = last.reduction_ratio
        assert ratio is not None
        change = 2.0 if not ratio >= rule.low else 0.5 if ratio > rule.high else 1.0
        seen.add(change)
        wanted = min(max(wanted * change, rule.minimum), rule.maximum)
    assert seen == {0.5, 1.0, 2.0}


def test_the_reported_ratio_is_actual_over_predicted_change() -> None:
    problem = classifier("cross-entropy", 8)
    model = problem.model()
    G, g = dense_problem(problem, model)
    before, start = packed(problem, model), loss(problem, model)
    ours = optimizer(Method(EXACT, LevenbergMarquardt(initial=0.05), Rate(0.8)), model)
    ours.step(problem.objective(model))
    u = packed(problem, model) - before
    predicted = float(g @ u + 0.5 * u @ G @ u)
    assert ours.last is not None
    assert ours.last.reduction_ratio == pytest.approx((loss(problem, model) - start) / predicted, rel=1e-9)


ARMIJO = Armijo(lr=64.0, slope=0.3, shrink=0.5, tries=20)


def test_armijos_step_is_the_first_that_decreases_the_loss_enough() -> None:
    problem = classifier("squared-error", 8)
    model = problem.model()
    blocks, start = problem.blocks(model), loss(problem, model)
    _, g = dense_problem(problem, model)
    before, slope = blocks.read(), -float(g @ g)
    ours = optimizer(Method(Identity(), Constant(0.0), ARMIJO), model)
    ours.step(problem.objective(model))
    last = ours.last
    assert last is not None
    assert last.accepted is True
    assert loss(problem, model) <= start + ARMIJO.slope * last.lr * slope
    shrunk = round(torch.log2(torch.tensor(64.0 / last.lr)).item())
    assert last.lr == 64.0 * 0.5**shrunk
    assert shrunk >= 1, "the first trial succeeded: nothing was searched"
    for k in range(shrunk):
        trial = before - 64.0 * 0.5**k * BlockVector(blocks.layout, g)
        blocks.assign_(trial)
        assert loss(problem, model) > start + ARMIJO.slope * 64.0 * 0.5**k * slope


def bits(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone().view(torch.int64) for p in model.parameters()]


REJECTED: dict[str, Any] = {
    "no trial decreases enough": Method(Identity(), Constant(0.0), Armijo(lr=1e6, tries=1)),
    # −10 θ turned round by the rate's sign: pulls θ outwards, against a gradient that is small beside it
    "the update does not descend": Method(
        Identity(), Constant(0.0), Armijo(), on_update=(WeightDecay(1e3), WeightDecay(1e3))
    ),
}


@pytest.mark.parametrize("reason", REJECTED)
def test_a_rejected_step_leaves_every_bit_as_it_was(reason: str) -> None:
    problem = classifier("squared-error", 8)
    model = problem.model()
    if reason == "the update does not descend":
        _, g = dense_problem(problem, model)
        blocks = problem.blocks(model)
        blocks.assign_(BlockVector(blocks.layout, -0.1 * g))  # θ against the gradient there: decay ascends
        _, here = dense_problem(problem, model)
        assert float(here @ (here + 2e3 * packed(problem, model))) < 0, "the case is not what it says"
    before, events = bits(model), list[Event]()
    ours = optimizer(REJECTED[reason], model, events)
    ours.step(problem.objective(model))
    assert all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))
    assert ours.last is not None
    assert ours.last.accepted is False
    assert [e.name for e in events] == ["rejected"]


def test_a_rejected_step_raises_the_damping() -> None:
    problem = classifier("squared-error", 8)
    model = problem.model()
    rule = LevenbergMarquardt(initial=1e-3, factor=3.0)
    ours = optimizer(Method(EXACT, rule, Armijo(lr=1e6, tries=1)), model)
    ours.step(problem.objective(model))
    ours.step(problem.objective(model))
    assert ours.last is not None
    assert ours.last.damping == pytest.approx(3e-3)


def test_the_acceptance_sample_decides_where_it_is_another() -> None:
    """Armijo measures on the acceptance sample: here a loss that any step increases."""
    problem = classifier("squared-error", 8)
    model = problem.model()
    ours = objective(model, problem.criterion, problem.inputs, problem.targets)
    with torch.no_grad():
        ours.acceptance_sample = (problem.inputs, model(problem.inputs))
    before = bits(model)
    optimizer(Method(Identity(), Constant(0.0), Armijo(lr=1.0)), model).step(ours)
    assert all(torch.equal(a, b) for a, b in zip(bits(model), before, strict=True))


def test_an_exact_inner_preconditioner_solves_in_one_iteration() -> None:
    problem = bowl()
    model = problem.model()
    blocks = problem.blocks(model)
    seen = problem.objective(model).evaluate(Needs(products=1), blocks, reference_context())
    G, _ = dense_problem(problem, model)
    assert seen.ggn is not None

    def inverse(r: BlockVector) -> BlockVector:
        return BlockVector(r.layout, torch.linalg.solve(G, r.flat))

    found = conjugate_gradients(seen.ggn, seen.gradient, M=inverse, max_iterations=9, tolerance=1e-12)
    assert found.iterations == 1
    assert_same(seen.ggn @ found.x, seen.gradient, condition=float(torch.linalg.cond(G)))
