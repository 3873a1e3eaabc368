"""Equations hold for their solutions; the model's loss is what the two terms are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from curvlab.testing.asserts import assert_close
from curvlab_pinn.equations import Equation
from curvlab_pinn.objective import pinn_objective
from curvlab_pinn.workload import Cloud
from plugins.pinn.tests.networks import EQUATIONS, derivatives, model, points

equations = pytest.mark.parametrize("equation", EQUATIONS, ids=str)


@equations
def test_a_solution_solves_its_equation(equation: Equation) -> None:
    x = torch.rand(20, equation.dimension, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    _, first, second = derivatives(equation.solution, x)
    left = first @ equation.first() - second @ equation.second()
    assert_close(left.detach(), equation.source(x), dimension=100, scale=30.0)


@equations
def test_the_loss_is_half_the_mean_square_of_each_term(equation: Equation) -> None:
    residuals, rows, d = model(equation), points(equation), equation.dimension
    inside, on = rows[:7], rows[7:]
    _, first, second = derivatives(lambda x: residuals.net(x)[:, 0], inside[:, :d])
    r = first @ equation.first() - second @ equation.second() - equation.source(inside[:, :d])
    b = residuals.net(on[:, :d])[:, 0] - equation.solution(on[:, :d])
    expected = 0.5 * r.square().mean() + 0.5 * b.square().mean()
    for micro_batch in (None, 3):
        found = pinn_objective(residuals, rows, micro_batch=micro_batch).loss()
        assert_close(found, expected.detach(), dimension=100)


@pytest.mark.parametrize(("inside", "on"), [(5, 0), (0, 5)])
def test_a_mini_batch_may_lack_a_term(inside: int, on: int) -> None:
    equation = EQUATIONS[2]
    residuals = model(equation)
    loss = pinn_objective(residuals, points(equation, inside, on)).loss()
    assert math.isfinite(float(loss))


@equations
def test_points_lie_where_they_should(equation: Equation) -> None:
    cloud = Cloud.drawn(equation, 50, 40, 30, seed=0)
    on_face = (cloud.on == 0) | (cloud.on == 1)
    assert bool(on_face.any(1).all())
    assert not bool(((cloud.inside == 0) | (cloud.inside == 1)).any())
    for axis, side in equation.faces():
        assert int((cloud.on[:, axis] == side).sum()) >= 40 // len(equation.faces())
    assert_close(cloud.given, equation.solution(cloud.on))
    assert_close(cloud.source, equation.source(cloud.inside))


def test_heat_is_not_given_at_the_end() -> None:
    cloud = Cloud.drawn(EQUATIONS[3], 50, 40, 30, seed=0)
    assert not bool((cloud.on[:, 0] == 1).any())


def test_a_model_is_moved_with_its_equation() -> None:
    residuals = model(EQUATIONS[3]).float()
    assert residuals.second.dtype == torch.float32
    assert isinstance(residuals.net, nn.Sequential)
