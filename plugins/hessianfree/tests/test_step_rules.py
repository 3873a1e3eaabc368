"""Step rules that choose among a solve's iterates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from curvlab.errors import ConfigError
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.progress import Iterate
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.parts.steps import Armijo, Rate
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.testing.lines import FunctionLine
from curvlab_hessianfree.backtracking import CGBacktracking
from curvlab_hessianfree.flexible_cg import FlexibleCG
from curvlab_hessianfree.krylov_basis import KrylovBasis
from curvlab_hessianfree.subspace import Subspace

D = 12
LAYOUT = BlockLayout({"a": (D,)})


class Matrix(LinearOperator[BlockVector]):
    """A symmetric matrix."""

    self_adjoint = True
    psd = True

    def __init__(self, entries: Tensor) -> None:
        self.entries = entries

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return BlockVector(v.layout, self.entries @ v.flat)


def vector(seed: int) -> BlockVector:
    g = torch.Generator().manual_seed(seed)
    return BlockVector(LAYOUT, torch.randn(D, generator=g, dtype=torch.float64))


def curvature(seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    X = torch.randn(D, D, generator=g, dtype=torch.float64)
    return X @ X.mT + 0.1 * torch.eye(D, dtype=torch.float64)


class Trials:
    """A loss of the displacement θ₀ − θ, and how often what was tried."""

    def __init__(self, loss: Callable[[Tensor], Tensor]) -> None:
        self.loss = loss
        self.tried: list[BlockVector] = []
        self.gradients = 0

    def loss_of(self, update: BlockVector, alpha: float) -> float:
        self.tried.append(update)
        return float(self.loss(alpha * update.flat))

    def differentiate(self, update: BlockVector, alpha: float) -> tuple[float, BlockVector]:
        self.gradients += 1
        at = (alpha * update.flat).requires_grad_()
        loss = self.loss(at)
        (g,) = torch.autograd.grad(loss, at)
        return float(loss.detach()), BlockVector(LAYOUT, -g)  # of θ, and u is subtracted

    def line(self, gradient: BlockVector, iterates: tuple[Iterate, ...], rate: float = 1.0) -> Line:
        start = float(self.loss(torch.zeros(D, dtype=torch.float64)))
        return FunctionLine(
            update=iterates[-1].x,
            gradient=gradient,
            rate=rate,
            loss=start,
            iterates=iterates,
            losses=self.loss_of,
            gradients=self.differentiate,
        )


def iterates(count: int) -> tuple[Iterate, ...]:
    """Multiples 1, 2, … of one direction."""
    one = vector(1)
    return tuple(Iterate(one * (k + 1.0), k + 1, 1.0) for k in range(count))


def chosen(losses: list[float], *, choose: str = "backwards", tries: int = 20) -> tuple[int, int]:
    """Which iterate is taken where they have these losses, and how many were tried."""
    found = iterates(len(losses))
    known = {id(i.x): loss for i, loss in zip(found, losses, strict=True)}
    tried = []

    def loss_of(update: BlockVector, alpha: float) -> float:
        tried.append(update)
        return known[id(update)]

    line = FunctionLine(update=found[-1].x, gradient=vector(0), loss=0.0, iterates=found, losses=loss_of)
    rule = CGBacktracking(Rate(1.0), choose=choose, tries=tries)  # type: ignore[arg-type]
    step = rule.search(None, line, 0)
    return next(k for k, i in enumerate(found) if i.x is step.update), len(tried)


def test_backwards_stops_at_the_first_iterate_that_is_worse() -> None:
    assert chosen([1.0, 5.0, 2.0, 3.0, 4.0]) == (2, 4)
    assert chosen([5.0, 4.0, 3.0, 2.0]) == (3, 2)
    assert chosen([1.0, 2.0, 3.0]) == (0, 3)


def test_of_two_that_are_equal_the_earlier_is_taken() -> None:
    assert chosen([3.0, 2.0, 2.0, 2.0]) == (1, 4)


def test_best_tries_every_iterate() -> None:
    assert chosen([1.0, 5.0, 2.0, 3.0, 4.0], choose="best") == (0, 5)


def test_no_more_are_tried_than_allowed() -> None:
    assert chosen([1.0, 2.0, 3.0, 4.0], tries=2) == (2, 2)


def test_losses_that_are_not_finite_are_gone_back_from() -> None:
    assert chosen([1.0, 2.0, math.nan, math.inf]) == (0, 4)
    assert chosen([1.0, math.nan, 3.0]) == (0, 3)
    assert chosen([math.nan, math.nan])[0] == 1  # the line search along the last will refuse it


def test_the_line_search_goes_on_along_the_chosen_iterate_and_may_refuse_it() -> None:
    A, g = curvature(), vector(3)
    trials = Trials(lambda d: 0.5 * d @ A @ d * 4.0 - g.flat @ d)  # four times as bent as the model says
    solve = FlexibleCG(D, progress=0).solve(Matrix(A), g)
    rule = CGBacktracking(Armijo(slope=1e-2, shrink=0.8))
    step = rule.search(None, trials.line(g, solve.iterates), 0)
    assert step.accepted
    assert any(step.update is i.x for i in solve.iterates)
    assert trials.loss(step.alpha * step.update.flat) < 0
    uphill = rule.search(None, Trials(lambda d: d @ d).line(g, solve.iterates), 0)
    assert not uphill.accepted
    assert uphill.alpha == 0


def test_a_prediction_for_an_iterate_needs_no_product() -> None:
    A, g = curvature(), vector(3)
    solve = FlexibleCG(5, progress=0).solve(Matrix(A), g)
    trials = Trials(lambda d: 0.5 * d @ A @ d - g.flat @ d)
    line = trials.line(g, solve.iterates)
    assert line.ggn is None
    for iterate in solve.iterates:
        for alpha in (1.0, 0.3):
            assert line.predicted(iterate.x, alpha) == pytest.approx(
                float(trials.loss(alpha * iterate.x.flat)), rel=1e-10
            )
            assert line.ratio(Step(iterate.x, alpha)) == pytest.approx(1.0, rel=1e-9)


def test_a_rule_that_chooses_too_is_no_line_search() -> None:
    with pytest.raises(ConfigError, match="then"):
        CGBacktracking(CGBacktracking(Armijo()))
    with pytest.raises(ConfigError, match="tries"):
        CGBacktracking(Armijo(), tries=0)


@pytest.mark.parametrize("solver", [KrylovBasis(6), FlexibleCG(6, progress=0)], ids=["basis", "cg"])
def test_on_the_model_itself_the_subspace_keeps_the_solution(solver: KrylovBasis | FlexibleCG) -> None:
    A, g = curvature(), vector(3)
    solve = solver.solve(Matrix(A), g)
    trials = Trials(lambda d: 0.5 * d @ A @ d - g.flat @ d)
    step = Subspace().search(None, trials.line(g, solve.iterates), 0)
    assert step.accepted
    torch.testing.assert_close(step.alpha * step.update.flat, solve.x.flat, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    "solver", [KrylovBasis(6, floor=1e-9), FlexibleCG(6, progress=0)], ids=["basis", "cg"]
)
def test_a_quadratic_of_another_curvature_is_minimized_over_the_whole_space(
    solver: KrylovBasis | FlexibleCG,
) -> None:
    A, B, g = curvature(), curvature(5), vector(3)
    solve = solver.solve(Matrix(A), g)
    U = torch.stack([i.x.flat for i in solve.iterates], dim=1)
    best = U @ torch.linalg.solve(U.mT @ B @ U, U.mT @ g.flat)
    trials = Trials(lambda d: 0.5 * d @ B @ d - g.flat @ d)
    rule = Subspace(iterations=60)
    step = rule.search(None, trials.line(g, solve.iterates), 0)
    assert step.accepted
    assert trials.gradients <= rule.tries
    assert float(trials.loss(step.update.flat)) == pytest.approx(float(trials.loss(best)), rel=1e-6)


def test_the_subspace_never_ends_worse_than_it_began() -> None:
    A, g = curvature(), vector(3)
    solve = KrylovBasis(4).solve(Matrix(A), g)

    def exploding(d: Tensor) -> Tensor:
        return torch.where(d.abs().max() > 1e-2, torch.tensor(math.nan, dtype=d.dtype), -g.flat @ d)

    for loss in (lambda d: (d @ d) * 1e3, exploding, lambda d: torch.exp(d @ d) - g.flat @ d):
        trials = Trials(loss)
        line = trials.line(g, solve.iterates)
        rule = Subspace()
        step = rule.search(None, line, 0)
        assert trials.gradients <= rule.tries
        if step.accepted:
            assert float(loss(step.alpha * step.update.flat)) < line.start()
        else:
            assert loss is not exploding, "a small step is better than none there"


def test_the_first_trial_of_the_subspace_is_the_solution_of_the_damped_model() -> None:
    """The curvature has rank 2: along most stretches the undamped one is rounding."""
    damping, g = 1e-3, vector(3)
    X = curvature()[:, :2]
    A = X @ X.mT + damping * torch.eye(D, dtype=torch.float64)
    solve = KrylovBasis(3, floor=1e-9).solve(Matrix(A), g, x0=vector(5))
    undamped = tuple(
        replace(i, curvature=i.curvature - damping * float(i.x.dot(i.x))) for i in solve.iterates
    )
    trials = Trials(lambda d: 0.5 * d @ A @ d - g.flat @ d)
    line = replace(trials.line(g, undamped), damping=damping)
    step = Subspace(iterations=1).search(None, line, 0)
    assert trials.gradients == 2  # where it begins, and the first trial
    torch.testing.assert_close(step.alpha * step.update.flat, solve.x.flat, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("factor", [1.0, 30.0, 1000.0])
def test_a_loss_more_curved_than_the_model_by_a_factor_costs_the_halvings_of_one_step(factor: float) -> None:
    A, B, g = curvature(), factor * (curvature() + 0.1 * curvature(5)), vector(3)
    solve = KrylovBasis(6, floor=1e-9).solve(Matrix(A), g)
    U = torch.stack([i.x.flat for i in solve.iterates], dim=1)
    best = U @ torch.linalg.solve(U.mT @ B @ U, U.mT @ g.flat)
    trials = Trials(lambda d: 0.5 * d @ B @ d - g.flat @ d)
    step = Subspace(iterations=8).search(None, trials.line(g, solve.iterates), 0)
    assert float(trials.loss(step.alpha * step.update.flat) / trials.loss(best)) == pytest.approx(
        1.0, rel=1e-5
    )
    assert trials.gradients <= 2 + 8 + math.ceil(math.log2(factor))
