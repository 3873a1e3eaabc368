"""K-BFGS at work: exact cases, the second evaluation of a batch, and what a step costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import curvlab
from curvlab.engine.inspection import StepCost
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import NeedsObjective
from curvlab.protocols.report import Event
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, labels, normal
from curvlab_kbfgs.kbfgs import Layer

N = 12
METHODS = ("kbfgs", "kbfgs-l")


def halved(outputs: Tensor, targets: Tensor) -> Tensor:
    """``½ Σ (h − t)²``, a mean over examples: Γ = I at one position, T·I at T positions."""
    return 0.5 * F.mse_loss(outputs, targets, reduction="sum") / len(outputs)


def optimizer(name: str, model: nn.Module, **given: Any) -> CurvatureOptimizer:
    made = curvlab.optimizer(name, model, precision="float64", **given)
    assert isinstance(made, CurvatureOptimizer)
    return made


def layers(ours: CurvatureOptimizer) -> dict[str, Layer]:
    found: dict[str, Layer] = ours.arms[0].state.preconditioner.layers
    return found


def plain(**settings: Any) -> dict[str, Any]:
    """No transforms: the step is ``lr`` times the preconditioned gradient."""
    return {"settings": {"on_gradient": [], "on_update": [], **settings}}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("positions", [None, 5])
def test_of_a_quadratic_loss_each_step_is_the_damped_newton_step(name: str, positions: int | None) -> None:
    """One layer: Γ is a multiple of I, whose pairs say so; and H_a, once exact, stays so."""
    torch.manual_seed(0)
    shape = () if positions is None else (positions,)
    model = (nn.Linear(4, 3) if positions is None else nn.Conv1d(4, 3, 1)).to(DTYPE)
    x, t = normal(N, 4, *shape, seed=1), normal(N, 3, *shape, seed=2)
    ours = optimizer(name, model, lr=0.5, damping=0.04, **plain())
    rows = x if positions is None else x.mT.flatten(0, 1)
    rows = torch.cat([rows, torch.ones(len(rows), 1, dtype=DTYPE)], 1)
    A = rows.mT @ rows / len(rows)
    inverse = torch.linalg.inv(A + 0.2 * A.diagonal().mean() * torch.eye(5, dtype=DTYPE))
    for k in range(4):
        theta = ours.blocks.read().flat.view(3, 5).clone()
        ours.step(curvlab.objective(model, halved, x, t))
        targets = t if positions is None else t.mT.flatten(0, 1)
        gradient = (rows @ theta.mT - targets).mT @ rows / N
        curvature = 1 if k == 0 else positions or 1  # H_g = I until the first pair
        expected = theta - 0.5 * gradient @ inverse / curvature
        assert_close(ours.blocks.read().flat.view(3, 5), expected, dimension=N, condition=1e4)


@pytest.mark.parametrize("name", METHODS)
def test_steps_do_not_depend_on_the_scale_of_the_loss_nor_on_what_counts_as_an_example(name: str) -> None:
    """A convolution of width 1 whose loss is a sum over positions is a linear layer on their examples."""
    x, y = normal(N, 6, 4, seed=1), labels(N, 4, classes=3, seed=2)

    def trained(model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(0)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.numel(), dtype=DTYPE).view(p.shape) / 2)
        ours = optimizer(
            name, model, lr=0.1, grafting="unit", settings={"fallback.lr": 0.1, "preconditioner.probes": 1}
        )
        for _ in range(4):
            ours.step(curvlab.objective(model, loss, x, y))
        return ours.blocks.read().flat.clone()

    def summed(h: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(h, y, reduction="sum") / len(h)

    def conv() -> nn.Module:
        return nn.Sequential(nn.Conv1d(6, 5, 1), nn.Tanh(), nn.Conv1d(5, 3, 1)).to(DTYPE)

    linear = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(DTYPE)
    expected = trained(conv(), summed, x, y)
    hundredfold = trained(conv(), lambda h, y: 100 * summed(h, y), x, y)
    by_position = trained(linear, nn.CrossEntropyLoss(), x.mT.flatten(0, 1), y.flatten())
    assert_close(hundredfold, expected, what="100 times the loss", dimension=N, condition=1e5)
    assert_close(by_position, expected, what="positions as examples", dimension=N, condition=1e5)


class Noisy(nn.Module):
    """Dropout, and batch normalization in training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5)
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.drop(self.norm(self.first(x))))
        return found


@pytest.mark.parametrize("name", METHODS)
def test_the_second_evaluation_is_of_the_same_function(name: str) -> None:
    """At a rate of 0 nothing changes, to the bit; buffers and random numbers move on as by one forward."""
    torch.manual_seed(0)
    model, twin = Noisy().to(DTYPE), Noisy().to(DTYPE)
    twin.load_state_dict(model.state_dict())
    x, y = normal(N, 4, seed=1), labels(N, classes=3, seed=2)
    ours = optimizer(name, model, lr=0.0, settings={"fallback.lr": 0.0})
    start = torch.get_rng_state()
    ours.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    after = torch.get_rng_state()
    for layer in layers(ours).values():
        assert not bool(layer.s.any()), "h̄ changed"
        assert not bool(layer.y.any()), "the slope changed"
        assert layer.learned == 0
    torch.set_rng_state(start)
    twin(x)
    assert torch.equal(torch.get_rng_state(), after)
    for ours_, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours_, theirs)


def test_pairs_come_from_both_evaluations_of_the_batch() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).to(DTYPE)
    x, y = normal(N, 4, seed=1), labels(N, classes=3, seed=2)
    ours = optimizer("kbfgs", model, lr=0.1)

    def means() -> tuple[Tensor, Tensor]:
        hidden = model[0](x)
        bias = torch.autograd.grad(nn.CrossEntropyLoss()(model(x), y), model[0].bias)[0]
        return hidden.mean(0).detach(), bias

    h, slope = means()
    ours.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    later, steeper = means()
    layer = layers(ours)["0"]
    assert_close(layer.s, 0.1 * (later - h), dimension=N, condition=1e3)
    assert_close(layer.y, 0.1 * (steeper - slope), dimension=N, condition=1e3)
    assert layer.learned == 1


def test_a_second_evaluation_that_is_not_finite_is_reported_and_teaches_nothing() -> None:
    model = nn.Linear(4, 3).to(DTYPE)
    before, events, calls = model.weight.detach().clone(), list[Event](), list[int]()
    ours = optimizer("kbfgs", model)
    ours.on_event = events.append

    def once(h: Tensor, y: Tensor) -> Tensor:
        calls.append(1)
        return F.cross_entropy(h, y) * (1.0 if len(calls) == 1 else torch.inf)

    ours.step(curvlab.objective(model, once, normal(N, 4, seed=1), labels(N, classes=3, seed=2)))
    assert [e.name for e in events] == ["after-not-finite"]
    assert not torch.equal(model.weight, before)
    (layer,) = layers(ours).values()
    assert layer.learned == 0
    assert bool(torch.isfinite(layer.y).all())


def test_a_plain_loop_is_refused_in_one_sentence() -> None:
    model = nn.Linear(4, 3)
    ours = curvlab.optimizer("kbfgs", model)
    model(torch.ones(2, 4)).sum().backward()
    expected = (
        r'^preconditioner Kbfgs of method "kbfgs" needs a second evaluation of the batch, after the step;'
        r" loss.backward\(\) does not compute this\n  call optimizer.step\(curvlab.objective"
    )
    with pytest.raises(NeedsObjective, match=expected):
        ours.step()


@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_resumed_between_steps_is_the_same_to_the_bit(name: str) -> None:
    x, y = normal(N, 1, 6, 6, seed=1).float(), labels(N, classes=3, seed=2)

    def made() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3))
        return model, curvlab.optimizer(
            name, model, settings={"preconditioner.dense": 12, "preconditioner.size": 5}
        )

    def step(model: nn.Module, ours: Any) -> None:
        ours.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))

    model, ours = made()
    for _ in range(3):
        step(model, ours)
    other, theirs = made()
    other.load_state_dict(model.state_dict())
    theirs.load_state_dict(ours.state_dict())
    for _ in range(3):
        step(model, ours)
        step(other, theirs)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_step_that_learns_counts_two_passes_and_others_one() -> None:
    ours = optimizer("kbfgs", nn.Linear(4, 3).to(DTYPE), refresh=3)
    assert [str(StepCost.of(ours.needs(k), 1)) for k in range(4)] == [
        "2 forwards, 2 backwards",
        "1 forward, 1 backward",
        "1 forward, 1 backward",
        "2 forwards, 2 backwards",
    ]


def test_state_is_linear_in_the_dimension() -> None:
    """Beside the gradient's moving average."""

    def numbers(d: int) -> float:
        ours = optimizer("kbfgs-l", nn.Linear(d, d, bias=False).to(DTYPE), grafting="none")
        return ours.state_bytes() / 8 - d * d

    assert numbers(512) == 512 * (2 * 64 + 2 * 20 + 2) + 20 * 20 + 1
    assert numbers(2048) == 4 * (numbers(512) - 401) + 401
