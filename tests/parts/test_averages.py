"""Averages of weights: each against torch, against its published recursion, and in its limits."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from curvlab.parts.schedule_free import ScheduleFree
from curvlab.parts.weight_means import TailEma, WeightEma
from curvlab.protocols.average import Taken
from curvlab.testing.problems import normal

STEPS = 10


def start() -> dict[str, Tensor]:
    return {"w": normal(3, 2, seed=0), "b": normal(3, seed=1)}


def displacement(k: int) -> dict[str, Tensor]:
    return {"w": normal(3, 2, seed=10 + k), "b": normal(3, seed=50 + k)}


def test_ema_is_that_of_torchs_averaged_model() -> None:
    torch.manual_seed(0)
    model, part = nn.Linear(4, 3), WeightEma(0.7)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.7))
    theta = dict(model.named_parameters())
    state = part.init({n: p.detach() for n, p in theta.items()})
    for k in range(STEPS):
        with torch.no_grad():
            for p in theta.values():
                p.add_(torch.randn_like(p))
        part.stepped(state, {n: p.detach() for n, p in theta.items()}, Taken(k, 0.1))
        theirs.update_parameters(model)
        for name, mean in theirs.module.named_parameters():
            assert torch.equal(state.mean[name], mean.detach())


@pytest.mark.parametrize(
    ("part", "first"), [(TailEma(0.6, start=0.5), 5), (TailEma(0.6, start=0.0, start_step=7), 7)]
)
def test_tail_ema_is_an_ema_that_begins_there_and_before_it_there_is_none(part: TailEma, first: int) -> None:
    theta, ema = start(), WeightEma(0.6)
    state, later = part.init(theta), ema.init(theta)
    for k in range(STEPS):
        for n, d in displacement(k).items():
            theta[n].add_(d)
        part.stepped(state, theta, Taken(k, 0.1, k / STEPS))
        if k >= first:
            ema.stepped(later, theta, Taken(k - first, 0.1))
        expected = later.mean if k >= first else theta
        for n, found in part.weights(state, theta).items():
            assert torch.equal(found, expected[n]), k


def test_a_share_of_the_tail_is_mixed_with_the_trained_weights() -> None:
    theta, part = start(), TailEma(0.6, start_step=0, share=0.25)
    state = part.init(theta)
    for k in range(3):
        for n, d in displacement(k).items():
            theta[n].add_(d)
        part.stepped(state, theta, Taken(k, 0.1))
    for n, found in part.weights(state, theta).items():
        torch.testing.assert_close(found, 0.75 * theta[n] + 0.25 * state.mean[n])


# schedule-free: the method's step is −rate times a gradient, here of a quadratic whose minimum is at −1


def gradient(y: Tensor) -> Tensor:
    return torch.arange(1, y.numel() + 1, dtype=y.dtype).view_as(y) * (y + 1)


def rate(k: int) -> float:
    return 0.02 * min((k + 1) / 4, 1.0)


@pytest.mark.parametrize("power", [0.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.9, 1.0])
def test_schedule_free_gradient_descent_is_the_published_recursion(beta: float, power: float) -> None:
    """In its own words, in three sequences: z of the method, x the average, y where gradients are taken."""
    part, theta = ScheduleFree(beta, power), {"w": normal(4, seed=0)}
    state = part.init(theta)
    z, x, total = theta["w"].clone(), theta["w"].clone(), 0.0
    for k in range(STEPS):
        theta["w"].sub_(gradient(theta["w"]), alpha=rate(k))
        part.stepped(state, theta, Taken(k, rate(k)))
        y = (1 - beta) * z + beta * x
        z = z - rate(k) * gradient(y)
        total += rate(k) ** power
        c = rate(k) ** power / total
        x = (1 - c) * x + c * z
        torch.testing.assert_close(part.weights(state, theta)["w"], x)
        torch.testing.assert_close(theta["w"], (1 - beta) * z + beta * x)


def test_with_beta_zero_the_method_is_as_it_was_and_x_is_the_mean_of_its_iterates() -> None:
    part, theta = ScheduleFree(0.0, 0.0), {"w": normal(4, seed=0)}
    state, alone, seen = part.init(theta), theta["w"].clone(), []
    for k in range(STEPS):
        theta["w"].sub_(gradient(theta["w"]), alpha=0.02)
        part.stepped(state, theta, Taken(k, 0.02))
        alone = alone - 0.02 * gradient(alone)
        seen.append(alone)
    torch.testing.assert_close(theta["w"], alone)
    torch.testing.assert_close(state.x["w"], torch.stack(seen).mean(0))


def test_with_beta_one_gradients_are_taken_at_the_average() -> None:
    part, theta = ScheduleFree(1.0), {"w": normal(4, seed=0)}
    state = part.init(theta)
    for k in range(STEPS):
        theta["w"].sub_(gradient(theta["w"]), alpha=0.02)
        part.stepped(state, theta, Taken(k, 0.02))
        assert torch.equal(theta["w"], state.x["w"])


def test_steps_of_rate_zero_before_the_first_one_leave_the_average_at_the_iterate() -> None:
    part, theta = ScheduleFree(), start()
    state, before = part.init(theta), copy.deepcopy(start())
    part.stepped(state, theta, Taken(0, 0.0))
    assert all(torch.equal(t, before[n]) for n, t in (*theta.items(), *state.x.items()))


def test_what_else_moves_the_parameters_moves_the_iterate() -> None:
    """A model that is loaded after the optimizer was made, a projection between two steps."""
    part, theta = ScheduleFree(0.5, 0.0), start()
    state = part.init(theta)
    loaded = displacement(3)
    for n, t in theta.items():
        t.copy_(loaded[n]).add_(0.25)
    part.stepped(state, theta, Taken(0, 0.1))
    for n, t in theta.items():
        torch.testing.assert_close(state.x[n], loaded[n] + 0.25)
        torch.testing.assert_close(t, loaded[n] + 0.25)


def test_of_parameters_in_bfloat16_small_changes_of_the_mean_add_up() -> None:
    """A step of the mean is below half a unit in its last place in bfloat16, 2⁻⁹."""
    part, theta = WeightEma(0.999), {"w": torch.ones(4, dtype=torch.bfloat16)}
    state = part.init(theta)
    part.stepped(state, theta, Taken(0, 0.1))
    theta["w"].add_(1.0)
    for k in range(100):
        part.stepped(state, theta, Taken(k + 1, 0.1))
    expected = torch.full((4,), 2 - 0.999**100, dtype=torch.float32)
    torch.testing.assert_close(state.mean["w"], expected, rtol=1e-5, atol=0)
