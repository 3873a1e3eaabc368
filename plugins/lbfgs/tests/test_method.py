"""The method ``lbfgs`` at work: on what is known, on real data, against torch's, and where numbers fail."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.config import build, load
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.training import Training, prepare
from curvlab.errors import Diverged, NeedsObjective
from curvlab.linalg.secants import Pairs
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.protocols.report import Event
from curvlab.registry import Registry
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from plugins.lbfgs.tests.dense import matrix, solved

ARMIJO = {"step": {"use": "armijo"}}
BOTH = pytest.mark.parametrize("settings", [{}, ARMIJO], ids=["strong-wolfe", "armijo"])


class Point(nn.Module):
    """A parameter, and outputs made of it."""

    def __init__(self, start: Tensor, outputs: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.theta, self.outputs = nn.Parameter(start.clone()), outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs(self.theta)[None]


def summed(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.sum()


def alone(model: nn.Module, loss: Any = summed) -> SupervisedObjective:
    """The loss of a model without data."""
    return objective(model, loss, torch.zeros(1, 1, dtype=DTYPE), torch.zeros(1, dtype=DTYPE))


def theta(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# what is known


def test_with_exact_searches_on_a_quadratic_it_walks_as_conjugate_gradients_do(optimizer: Any) -> None:
    n = 10
    A, b = matrix(n, 20.0), normal(n, seed=1)
    model = Point(torch.zeros(n, dtype=DTYPE), lambda t: (0.5 * t @ A @ t - b @ t)[None])
    ours = optimizer(model, memory=3, settings={"step.c2": 1e-9, "step.c1": 1e-12})
    for k in range(1, 8):
        ours.step(alone(model))
        x = solved(A, b, k, Pairs()).x.flat
        assert_close(theta(model), x, condition=1e5, what=f"iterate {k}")


@BOTH
def test_rosenbrocks_valley_is_walked_to_its_end(settings: dict[str, Any], optimizer: Any) -> None:
    model = Point(
        torch.tensor([-1.2, 1.0], dtype=DTYPE),
        lambda t: (100 * (t[1] - t[0] ** 2) ** 2 + (1 - t[0]) ** 2)[None],
    )
    ours = optimizer(model, settings=settings)
    losses = [float(ours.step(alone(model))) for _ in range(60)]
    assert min(losses) < 1e-8, losses[::5]
    assert_close(theta(model), torch.ones(2, dtype=DTYPE), condition=1e10)


def run(registry: Registry, task: Mapping[str, Any], steps: int, settings: Mapping[str, Any]) -> Training:
    """A run of the method as a configuration asks for it."""
    data = {"run": {"steps": steps}, "task": task, "method": {"use": "lbfgs", **settings}}
    plan = build(load(data=data), registry)
    torch.manual_seed(0)
    training = prepare(plan, lambda event: None)
    for _ in range(steps):
        training.optimizer.step(training.workload.objective(training.samples.draw()))
    return training


@BOTH
@pytest.mark.parametrize(
    ("task", "steps", "metric", "below"),
    [
        ({"use": "quadratic"}, 100, "val_loss", 1e-4),  # 15 at the start
        ({"use": "teacher-student"}, 80, "val_loss", 0.1),  # 1.4
        ({"use": "digits"}, 40, "val_loss", 0.5),  # 2.3
    ],
    ids=["quadratic", "teacher-student", "digits"],
)
def test_registered_tasks_are_solved(
    task: dict[str, Any], steps: int, metric: str, below: float, settings: dict[str, Any], registry: Registry
) -> None:
    assert run(registry, task, steps, settings).workload.metrics()[metric] < below


# a neighbor


def student() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).to(DTYPE)


def lesson() -> tuple[Tensor, Tensor]:
    """300 examples of what a network of the same shape makes of them."""
    torch.manual_seed(0)
    teacher, x = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)).to(DTYPE), normal(300, 6, seed=1)
    with torch.no_grad():
        return x, teacher(x)


class Counted(SupervisedObjective):
    """Counts trial gradients."""

    trials = 0

    def differentiate(self, at: Mapping[str, Tensor], **more: Any) -> Any:
        self.trials += 1
        return super().differentiate(at, **more)


def test_it_needs_no_more_trials_than_torchs_to_reach_a_loss(optimizer: Any) -> None:
    goal, criterion, (x, y) = 1e-3, nn.MSELoss(), lesson()
    model, calls = student(), 0
    theirs = torch.optim.LBFGS(
        model.parameters(),
        history_size=16,
        max_iter=1,
        max_eval=10_000,
        line_search_fn="strong_wolfe",
        tolerance_change=0.0,
    )

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        theirs.zero_grad()
        loss: Tensor = criterion(model(x), y)
        loss.backward()
        return loss

    steps = 0
    while float(theirs.step(closure).detach()) > goal:
        steps += 1
        assert steps < 300, "torch's does not get there"
    trials = calls - steps - 1  # the first call of each step is at θ

    model = student()
    ours, loss = optimizer(model), objective(model, criterion, x, y)
    counted = Counted(model, loss.loss_rule, x, y)
    for _ in range(2 * steps):
        if float(ours.step(counted)) <= goal:
            break
    assert float(counted.loss()) <= goal
    assert counted.trials <= 1.25 * trials + 5, (counted.trials, trials)


# where numbers fail


@BOTH
@pytest.mark.parametrize("wall", [0.3, 1e-3])
def test_a_loss_that_is_no_number_nearby_never_gets_into_the_parameters(
    wall: float, settings: dict[str, Any], optimizer: Any
) -> None:
    """Σ θ − wall · log θ, from θ = 1: minimum at θ = wall, nothing behind 0."""
    model = Point(torch.ones(3, dtype=DTYPE), lambda t: (t - wall * t.log()).sum()[None])
    ours = optimizer(model, settings=settings)
    for _ in range(40):
        ours.step(alone(model))
        assert bool(torch.isfinite(theta(model)).all())
    torch.testing.assert_close(theta(model), torch.full((3,), wall, dtype=DTYPE), rtol=1e-3, atol=0)


class Trap(SupervisedObjective):
    """From some call on, every trial is worse than anything, or no number."""

    worse = float("nan")
    shut = False

    def differentiate(self, at: Mapping[str, Tensor], **more: Any) -> Any:
        loss, gradient = super().differentiate(at, **more)
        return (torch.tensor(self.worse) if self.shut else loss), gradient

    def loss(self, at: Mapping[str, Tensor] | None = None) -> Tensor:
        return torch.tensor(self.worse) if self.shut and at else super().loss(at)


@BOTH
@pytest.mark.parametrize("worse", [float("nan"), float("inf"), 1e9])
def test_a_failed_search_moves_no_bit_empties_the_memory_and_says_so(
    worse: float, settings: dict[str, Any], optimizer: Any
) -> None:
    model, events = student(), list[Event]()
    ours = optimizer(model, settings=settings, events=events)
    (x, y), rule = lesson(), objective(model, nn.MSELoss(), *lesson()).loss_rule
    trap = Trap(model, rule, x, y)
    trap.worse = worse
    for _ in range(5):
        ours.step(trap)
    assert events == []
    before, trap.shut = theta(model), True
    ours.step(trap)
    assert torch.equal(theta(model), before)
    assert [e.name for e in events] == ["rejected", "memory-reset"]
    assert events[1].detail["pairs"] >= 4
    ours.step(trap)
    assert [e.name for e in events[2:]] == ["rejected"]  # a stall is told at every step
    assert torch.equal(theta(model), before)

    trap.shut = False
    gradient = trap.evaluate(ours.needs(7), ours.blocks, ours.assignment.context(ours.arms[0], 7)).gradient
    flat = torch.cat([gradient[b.name].flatten() for b in ours.blocks.members])
    old = ours.blocks.read().flat
    loss = float(ours.step(trap))
    moved = ours.blocks.read().flat - old
    assert float(-(moved @ flat) / (moved.norm() * flat.norm())) == pytest.approx(1.0)  # steepest descent
    assert float(trap.loss()) < loss


def test_a_gradient_that_is_no_number_ends_the_run_where_it_was(optimizer: Any) -> None:
    model = Point(torch.zeros(2, dtype=DTYPE), lambda t: t.sqrt())
    with pytest.raises(Diverged):
        optimizer(model).step(alone(model))
    assert torch.equal(theta(model), torch.zeros(2, dtype=DTYPE))


def test_at_the_minimum_it_stays_and_says_so(optimizer: Any) -> None:
    model, events = Point(torch.zeros(2, dtype=DTYPE), torch.square), list[Event]()
    optimizer(model, events=events).step(alone(model))
    assert torch.equal(theta(model), torch.zeros(2, dtype=DTYPE))
    assert [e.name for e in events] == ["rejected"]


def test_in_float32_it_goes_on_to_the_rounding_of_the_loss(optimizer: Any) -> None:
    """A loss of 1 and more whose last digits the searches must not believe."""
    A = matrix(6, 50.0).float()
    start = normal(6, seed=3).float()
    model = Point(start, lambda t: (1000 + 0.5 * t @ A @ t)[None])
    inputs = torch.zeros(1, 1), torch.zeros(1)
    ours = optimizer(model)
    for _ in range(40):
        ours.step(objective(model, summed, *inputs))
    # at this distance the loss differs from 1000 by a hundredth of its last place
    assert float(theta(model).norm()) < 1e-3 * float(start.norm())


def test_a_plain_loop_is_told_what_it_lacks(optimizer: Any) -> None:
    model, (x, y) = student(), lesson()
    ours = optimizer(model)
    nn.functional.mse_loss(model(x), y).backward()
    with pytest.raises(NeedsObjective, match="StrongWolfe") as error:
        ours.step()
    assert "trial gradients" in str(error.value)


# coming back


def by_torch_save(old: CurvatureOptimizer, new: CurvatureOptimizer) -> None:
    file = io.BytesIO()
    torch.save(old.state_dict(), file)
    file.seek(0)
    new.load_state_dict(torch.load(file, weights_only=True))


def by_snapshot(old: CurvatureOptimizer, new: CurvatureOptimizer) -> None:
    tensors, plain = old.snapshot()
    new.restore({k: v.clone() for k, v in tensors.items()}, dict(plain))


@BOTH
@pytest.mark.parametrize("way", [by_torch_save, by_snapshot])
@pytest.mark.parametrize("steps", [1, 3, 9])
def test_after_a_load_training_goes_on_bit_for_bit(
    steps: int, way: Callable[..., None], settings: dict[str, Any], optimizer: Any
) -> None:
    """With a memory that is not full, and one whose rows have gone round."""
    model, other = student(), student()
    ours, twin = (optimizer(m, memory=4, settings=settings) for m in (model, other))

    def go(m: nn.Module, o: Any) -> None:
        o.step(objective(m, nn.MSELoss(), *lesson()))

    for _ in range(steps):
        go(model, ours)
    other.load_state_dict(model.state_dict())
    way(ours, twin)
    for _ in range(4):
        go(model, ours)
        go(other, twin)
        assert torch.equal(theta(model), theta(other))


def test_it_counts_the_bytes_it_holds(optimizer: Any) -> None:
    model = student()
    size = sum(p.numel() for p in model.parameters())
    assert optimizer(model, memory=7).state_bytes() == 8 * ((2 * 8 + 1) * size + 2 * 8 * 8 + 2 * 8)
