"""The tasks, and the method on them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import curvlab
from curvlab.errors import ConfigError
from curvlab.protocols.sampler import Draw
from curvlab_pinn.tasks import Heat, Poisson
from curvlab_pinn.workload import PinnWorkload
from tests.limits.registered import optimizer

SMALL: dict[str, Any] = {"hidden": (16,), "interior": 90, "boundary": 24, "test": 500, "batch_size": 114}
WIDE = {**SMALL, "hidden": (64,)}


def workload(task: Poisson | Heat, dtype: torch.dtype = torch.float64) -> PinnWorkload:
    torch.manual_seed(0)
    return task.workload(task.model(), dtype=dtype, device=torch.device("cpu"))


def everything(made: PinnWorkload) -> Draw:
    whole = torch.arange(made.size)
    return Draw(whole, whole, whole)


def trained(made: PinnWorkload, ours: Any, steps: int) -> float:
    for _ in range(steps):
        ours.step(made.objective(everything(made)))
    return made.metrics()["val_l2"]


@pytest.mark.parametrize(
    "task", [Poisson(**SMALL), Heat(**{**SMALL, "dimension": 3})], ids=lambda t: type(t).__name__
)
def test_the_method_solves_what_adamw_does_not(task: Poisson | Heat) -> None:
    """In forty steps, each with a search; AdamW has hardly begun with as many gradients."""
    made = workload(task)
    found = trained(made, optimizer("kfac-pinn", made.model), 40)
    other = workload(task)
    beside = trained(other, optimizer("adamw", other.model, lr=1e-2), 40)
    assert found < 0.5
    assert found < 0.5 * beside


@pytest.mark.parametrize("task", [Poisson(**WIDE), Heat(**WIDE)], ids=lambda t: type(t).__name__)
def test_in_float32_no_factorization_fails(task: Poisson | Heat) -> None:
    """With the default λ, 1e-8, below the rounding of every factor: the loss falls as in float64."""
    made, events = workload(task, torch.float32), list[str]()
    ours = curvlab.optimizer("kfac-pinn", made.model, precision="float32")
    ours.on_event = lambda event: events.append(event.name)
    found = trained(made, ours, 25)
    assert set(events) <= {"rejected"}
    assert found < 0.3


def test_the_error_is_relative_to_the_solution() -> None:
    made = workload(Poisson(**SMALL))
    for p in made.model.parameters():
        nn.init.zeros_(p)
    assert made.metrics()["val_l2"] == pytest.approx(1.0)
    assert made.metrics()["val_loss"] == pytest.approx(0.5)


def test_a_draw_chooses_points_of_both_kinds() -> None:
    made = workload(Poisson(**SMALL))
    some, trial = torch.tensor([100, 3, 110, 7, 50]), torch.tensor([0, 1, 90])
    objective = made.objective(Draw(some, some, trial))
    rows = objective.gradient_sample[0]  # type: ignore[index]
    assert rows[:, -1].tolist() == [1.0, 1.0, 1.0, 0.0, 0.0]
    assert torch.equal(rows[:3, :2], made.cloud.inside[[3, 7, 50]])
    assert torch.equal(rows[3:, :2], made.cloud.on[[10, 20]])
    assert len(objective.acceptance_sample[0]) == 3  # type: ignore[index]
    assert objective.curvature_sample is objective.gradient_sample


def test_points_are_those_of_their_seed_alone() -> None:
    same, other = workload(Poisson(**SMALL)), workload(Poisson(**{**SMALL, "data_seed": 1}))
    assert torch.equal(workload(Poisson(**SMALL)).cloud.inside, same.cloud.inside)
    assert not torch.equal(other.cloud.inside, same.cloud.inside)


def test_wrong_settings_are_all_named() -> None:
    with pytest.raises(ConfigError) as failed:
        Poisson(dimension=0, interior=0, hidden=(0,))
    assert {fault.path for fault in failed.value.faults} == {"dimension", "interior", "hidden.0"}
    with pytest.raises(ConfigError, match="dimension = 1"):
        Heat(dimension=1)


@pytest.mark.parametrize(
    ("task", "axes"),
    [
        (Poisson(dimension=1, hidden=(4,), test=500), ("x", "u")),
        (Poisson(hidden=(4,), test=500), ("x₁", "x₂")),
        (Heat(hidden=(4,), test=500), ("time t", "x")),
        (Poisson(dimension=3, hidden=(4,)), None),
    ],
    ids=["line", "square", "heat", "cube"],
)
def test_pictures_show_the_solution_and_the_error_that_is_measured(
    task: Poisson | Heat, axes: tuple[str, str] | None
) -> None:
    made = workload(task)
    pictures = made.pictures()
    assert [(p.title, p.axes) for p in pictures] == ([("solution", axes), ("error", axes)] if axes else [])
    if not axes:
        return
    solution, error = (p.content.values for p in pictures)
    assert torch.equal(error["network − exact"], solution["network"] - solution["exact"])
    size = float(error["network − exact"].norm() / solution["exact"].norm())
    assert size == pytest.approx(made.metrics()["val_l2"], rel=0.2)  # on other points
    if isinstance(task, Heat):  # decays in time, and rises in space
        assert solution["exact"][0, -1] > solution["exact"][-1, -1] > solution["exact"][-1, 0]
