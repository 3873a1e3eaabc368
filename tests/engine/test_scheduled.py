"""Schedules inside methods: rates that groups multiply, damping, and intervals between refreshes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.testing.problems import labels, normal
from tests.limits.registered import DAMPED, knobs_of, methods, optimizer

RATE = {
    "use": "product",
    "factors": [
        0.05,
        {"use": "warmup", "steps": 3},
        {"use": "sequence", "parts": [1.0, {"use": "power", "start": 1, "end": 0, "steps": 4}], "steps": [3]},
    ],
}


def rates() -> list[float]:
    """The same in words."""
    return [
        0.05 * min((k + 1) / 3, 1.0) * (1.0 if k < 3 else max(1 - (k - 3) / 4, 0.0) ** 1.2) for k in range(9)
    ]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def step(made: CurvatureOptimizer, k: int) -> None:
    x, y = normal(12, 4, seed=k), labels(12, classes=3, seed=k)
    made.step(curvlab.objective(made.model, nn.CrossEntropyLoss(), x, y))


def weights(made: CurvatureOptimizer) -> Tensor:
    return nn.utils.parameters_to_vector(made.model.parameters()).detach().clone()


def test_steps_have_the_rates_of_the_composition_times_what_the_group_says() -> None:
    """Gradient descent: a displacement is the rate times a gradient that torch computes."""
    made = curvlab.optimizer("sgd", network(), lr=RATE, momentum=0.0)
    shown = made.param_groups[0]["lr"]
    assert shown == pytest.approx(rates()[0])
    for k, rate in enumerate(rates()):
        factor = 1.0 if k < 4 else 0.5
        made.param_groups[0]["lr"] = factor * shown
        before = weights(made)
        loss = nn.functional.cross_entropy(made.model(normal(12, 4, seed=k)), labels(12, classes=3, seed=k))
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(made.model.parameters()))])
        step(made, k)
        torch.testing.assert_close(before - weights(made), factor * rate * gradient, atol=1e-15, rtol=1e-9)


def test_a_scheduled_damping_is_that_of_each_step() -> None:
    schedule = {
        "use": "sequence",
        "parts": [0.5, {"use": "linear", "start": 0.5, "end": 0.1, "steps": 2}],
        "steps": [2],
    }
    made, found = curvlab.optimizer("kfac", network(), damping=schedule), []
    for k in range(6):
        step(made, k)
        assert made.last is not None
        found.append(made.last.damping)
    assert found == pytest.approx([0.5, 0.5, 0.5, 0.3, 0.1, 0.1])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("name", [n for n in methods() if "refresh" in knobs_of(n)])
def test_an_interval_that_is_a_constant_schedule_trains_as_the_number_does(name: str) -> None:
    """And one that grows refreshes at other steps."""
    ends = []
    constant = {"use": "linear", "start": 2, "end": 2, "steps": 1}
    growing = {"use": "sequence", "parts": [1, 3], "steps": [1]}
    for refresh in (2, constant, growing):
        made = optimizer(name, network(), refresh=refresh, **DAMPED.get(name, {}))
        for k in range(4):
            step(made, k)
        ends.append(weights(made))
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


@pytest.mark.parametrize("name", ["kfac", "singd", "shampoo"])
def test_a_state_that_was_loaded_refreshes_at_the_same_steps(name: str) -> None:
    knobs: dict[str, Any] = {"refresh": {"use": "sequence", "parts": [1, 3], "steps": [2]}, "lr": RATE}
    whole, cut = (curvlab.optimizer(name, network(), **knobs) for _ in range(2))
    for k in range(8):
        step(whole, k)
        if k == 4:
            saved, model = cut.state_dict(), cut.model
            cut = curvlab.optimizer(name, network(), **knobs)
            cut.model.load_state_dict(model.state_dict())
            cut.load_state_dict(saved)
        step(cut, k)
    assert torch.equal(weights(whole), weights(cut))
