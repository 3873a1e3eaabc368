"""Averages of weights around every method: what leaves the training as it is, and what moves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.objectives.supervised import objective
from curvlab.parts.schedule_free import ScheduleFree
from curvlab.parts.weight_means import WeightEma
from curvlab.precision.full import Full
from curvlab.protocols.average import Average
from curvlab.testing.problems import labels, normal
from tests.limits.registered import DAMPED, methods, optimizer

STEPS = 2


def trained(name: str, average: Average[Any] | None) -> tuple[Tensor, Tensor]:
    """The parameters after some steps, trained and averaged, one after the other."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    method = optimizer(name, model, **DAMPED.get(name, {})).given[0]
    made = CurvatureOptimizer(method, model, backend=Full("float64"), average=average)
    x, y = normal(12, 4, seed=0), labels(12, classes=3, seed=0)
    for _ in range(STEPS):
        made.step(objective(model, nn.CrossEntropyLoss(), x, y))
    ends = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    if average is None:
        return ends, ends
    with made.averaged():
        return ends, nn.utils.parameters_to_vector(model.parameters()).detach().clone()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("name", methods())
def test_a_mean_leaves_every_method_as_it_is_and_so_does_schedule_free_with_beta_zero(name: str) -> None:
    alone, _ = trained(name, None)
    beside, mean = trained(name, WeightEma(0.5))
    assert torch.equal(alone, beside)
    between, iterates = trained(name, ScheduleFree(0.0))
    torch.testing.assert_close(between, alone, rtol=1e-6, atol=1e-7)
    away, _ = trained(name, ScheduleFree(0.9))
    assert bool(torch.isfinite(away).all())
    for found in (mean, iterates, away):
        assert not torch.equal(found, alone)
