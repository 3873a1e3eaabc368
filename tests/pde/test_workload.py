"""Workloads of problems: points of a round, which a checkpoint brings back; and what is measured."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab import pde
from curvlab.errors import ConfigError
from curvlab.pde.task import OwnProblem
from curvlab.pde.workload import PdeWorkload
from curvlab.protocols.sampler import Draw
from curvlab.testing.asserts import assert_close
from tests.engine.small_run import run_small, same, small_plan, stopped_at
from tests.limits.registered import optimizer
from tests.pde.problems import adaptive, mlp, uniform

PROBLEMS = {"adaptive": adaptive, "uniform": uniform}

every = pytest.mark.parametrize("name", PROBLEMS)


def workload(name: str, *, every: int = 2, dtype: torch.dtype = torch.float64) -> PdeWorkload:
    model = pde.Residuals(mlp(2), PROBLEMS[name]())
    return PdeWorkload(model, dtype=dtype, device=torch.device("cpu"), test=50, resample=every)


def everything(made: PdeWorkload) -> Draw:
    whole = torch.arange(made.size)
    return Draw(whole, whole, whole)


def points(made: PdeWorkload) -> Tensor:
    """Those of the next objective."""
    inputs: Tensor = made.objective(everything(made)).gradient_sample[0]  # type: ignore[index]
    return inputs.clone()


@every
def test_points_are_drawn_again_every_so_many_steps(name: str) -> None:
    ours, same = workload(name), workload(name)
    seen = [points(ours) for _ in range(6)]
    for k in (0, 2, 4):
        assert torch.equal(seen[k], seen[k + 1])
    assert not torch.equal(seen[0], seen[2])
    assert not torch.equal(seen[2], seen[4])
    assert [bool(torch.equal(points(same), x)) for x in seen] == [True] * 6
    never = workload(name, every=0)
    first = points(never)
    assert all(torch.equal(points(never), first) for _ in range(4))
    assert not [b for b, _ in never.model.named_buffers() if b in never.model.state_dict()]


def test_adaptive_points_move_to_where_the_residual_is_large() -> None:
    ours = workload("adaptive")
    first, _, later = (points(ours) for _ in range(3))
    near = [int((x[:60, 0] > 0.9).sum()) for x in (first, later)]
    assert near[1] > 2 * near[0]
    assert "rows" in ours.model.state_dict()
    assert "rows" not in workload("uniform").model.state_dict()


@every
@pytest.mark.parametrize("step", [1, 2, 4, 5])
@pytest.mark.parametrize("used", [0, 5])
def test_a_checkpoint_of_any_step_brings_its_points_back(name: str, step: int, used: int) -> None:
    """In a new workload, and in one that was used; two methods, six steps, bit for bit."""

    def started() -> tuple[PdeWorkload, Any]:
        ours = workload(name)
        return ours, optimizer("kfac", ours.model)

    whole, method = started()
    states: dict[int, Any] = {}
    for k in range(6):
        states[k] = (
            {n: t.clone() for n, t in whole.model.state_dict().items()},
            copy.deepcopy(method.state_dict()),
        )
        method.step(whole.objective(everything(whole)))
    again, other = started()
    for _ in range(used):
        other.step(again.objective(everything(again)))
    again.model.load_state_dict(states[step][0])
    other.load_state_dict(states[step][1])
    for _ in range(step, 6):
        other.step(again.objective(everything(again)))
    for n, p in whole.model.named_parameters():
        assert torch.equal(p, again.model.get_parameter(n)), n
    assert torch.equal(whole.rows, again.rows)


@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_that_was_stopped_goes_on_with_its_points(tmp_path: Path, stop: int) -> None:
    """Adaptive points, by run folders."""
    task = OwnProblem(equation="tests.pde.problems:adaptive", hidden=(5,), resample=2)
    plan = small_plan(task=task, steps=6, log_every=1)
    folder, _ = stopped_at(tmp_path, stop, signal.SIGTERM, plan=plan)
    whole = run_small(tmp_path / "whole", plan)
    same(whole, run_small(tmp_path, plan, resume=folder))
    assert int(whole.model.get_buffer("objectives_made")) == 6


def test_a_draw_chooses_points_of_every_term() -> None:
    ours = workload("uniform", every=0)
    some, trial = torch.tensor([61, 3, 66, 7, 50]), torch.tensor([0, 1, 64])
    objective = ours.objective(Draw(some, some, some))
    rows = objective.gradient_sample[0]  # type: ignore[index]
    assert torch.equal(rows[:, :2], ours.rows[[3, 7, 50, 61, 66], :2])
    assert rows[:, -1].tolist() == [0.0, 0.0, 0.0, 1.0, 1.0]
    inside, on = ours.model.parts(ours.rows)
    r = [ours.model.residual(0, inside[[3, 7, 50]]), ours.model.residual(1, on[[1, 6]])]
    assert_close(objective.loss(), sum(0.5 * t.square().mean() for t in r).detach(), dimension=100)  # type: ignore[union-attr]
    assert objective.curvature_sample is objective.acceptance_sample is objective.gradient_sample
    objective = ours.objective(Draw(some, some, trial))
    assert len(objective.acceptance_sample[0]) == 3  # type: ignore[index]
    assert objective.curvature_sample is objective.gradient_sample


def test_metrics_are_the_loss_at_other_points_and_the_relative_error() -> None:
    ours = workload("uniform", every=0)
    for p in ours.model.parameters():
        nn.init.zeros_(p)
    found = ours.metrics()
    assert found["val_l2"] == pytest.approx(1.0)
    source = 100 * torch.exp(20 * (ours.fresh[:60, 0] - 1))
    assert found["val_loss"] == pytest.approx(float(0.5 * source.square().mean()))
    assert not torch.equal(ours.fresh, ours.rows)
    narrow = workload("uniform", every=0, dtype=torch.float32)
    assert {t.dtype for t in (narrow.rows, narrow.fresh, narrow.test)} == {torch.float32}
    assert_close(narrow.rows.double(), ours.rows.float().double())


@pytest.mark.parametrize(
    ("dimension", "outputs", "titles"),
    [(1, 1, ["solution", "error"]), (2, 2, ["solution 1", "error 1", "solution 2", "error 2"]), (3, 1, [])],
)
def test_pictures_show_the_solution_and_the_error(dimension: int, outputs: int, titles: list[str]) -> None:
    box = {f"x{k}": (0.0, 2.0) for k in range(dimension)}
    terms = (pde.Term(lambda u, x: u(), pde.Inside(5)),)
    made = pde.Problem(box, terms, outputs, reference=lambda x: x[:, :1].expand(-1, outputs))
    ours = PdeWorkload(
        pde.Residuals(mlp(dimension, outputs), made), dtype=torch.float64, device=torch.device("cpu")
    )
    pictures = ours.pictures()
    assert [p.title for p in pictures] == titles
    for solution, error in zip(pictures[::2], pictures[1::2], strict=True):
        values = solution.content.values
        assert torch.equal(error.content.values["network − exact"], values["network"] - values["exact"])
        assert bool((values["exact"][-1] == 2.0).all())  # the first coordinate is the first axis
        assert bool((values["exact"][0] == 0.0).all())


def test_a_problem_of_your_own_is_named_by_an_import_string() -> None:
    task = OwnProblem(equation="tests.pde.problems:adaptive", net="tests.pde.test_workload:network")
    model = task.model()
    assert isinstance(model, pde.Residuals)
    assert isinstance(model.net[0], nn.Linear)  # type: ignore[index]
    assert model.net[0].weight.shape == (3, 2)  # type: ignore[index]
    for settings, message in (
        ({}, "the task pde needs a problem"),
        ({"equation": "tests.pde.problems:nothing"}, "cannot be imported"),
        ({"equation": "no_such_module:made"}, "cannot be imported"),
        ({"equation": "made"}, "made"),
        ({"equation": "tests.pde.problems:POINTS"}, "of type Tensor; expected a curvlab.pde.Problem"),
        (
            {"equation": "tests.pde.problems:adaptive", "net": "tests.pde.test_workload:nothing_yet"},
            "nn.Module",
        ),
        ({"equation": "tests.pde.problems:adaptive", "net": "tests.pde.test_workload:nothing"}, "cannot be"),
    ):
        with pytest.raises(ConfigError, match=message):
            OwnProblem(**settings).model()  # type: ignore[arg-type]


def nothing_yet(problem: pde.Problem) -> None:
    return None


def network(problem: pde.Problem) -> nn.Module:
    return nn.Sequential(nn.Linear(problem.dimension, 3), nn.Tanh(), nn.Linear(3, problem.outputs))
