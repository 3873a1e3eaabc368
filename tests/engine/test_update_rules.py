"""Rules for updates around whole methods: both loops, parameter groups, low precision, saved states."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import ConfigError
from curvlab.testing.problems import labels, normal
from curvlab.testing.unread import UnreadNorm

#: every rule, in an order in which each has something to do
RULES: list[dict[str, Any]] = [
    {"use": "graft", "rule": "adafactor"},
    {"use": "norm-constraint", "limit": float("inf")},
    {"use": "nesterov", "beta": 0.8},
    {"use": "radial-brake", "outward": 0.25},
    {"use": "row-floor", "ratio": 0.5},
    {"use": "cautious", "rate": 0.1, "mask": True},
    {"use": "hyperball"},
]
#: with a preconditioner that is ready at the first step, and refreshes between two
METHODS = ("kfac", "singd", "adamw")


def network(dtype: torch.dtype = torch.float64) -> nn.Module:
    """Weights in blocks with their biases, and scales that go to a fallback."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.Tanh(),
        nn.Flatten(),
        UnreadNorm(48),
        nn.Linear(48, 8),
        nn.Tanh(),
        nn.Linear(8, 3),
    ).to(dtype)


def made(
    method: str, model: nn.Module, rules: list[dict[str, Any]] = RULES, **more: Any
) -> CurvatureOptimizer:
    knobs = {} if method == "adamw" else {"refresh": 3, "labels": "data"}
    return curvlab.optimizer(method, model, settings={"on_update": rules}, lr=0.05, **knobs, **more)


def batch(k: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return normal(8, 1, 6, 6, seed=k).to(dtype), labels(8, classes=3, seed=k)


def step(optimizer: CurvatureOptimizer, model: nn.Module, k: int, *, plain: bool = False) -> None:
    x, y = batch(k, next(model.parameters()).dtype)
    if plain:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    else:
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Those that the method itself treats, and not its fallback."""
    return {n: p.detach() for n, p in model.named_parameters() if p.dim() in (2, 4)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("plain", [False, True])
def test_weights_of_every_method_stay_on_their_spheres_in_groups_of_any_rate(
    method: str, plain: bool
) -> None:
    model = network()
    first = {n: w.norm() for n, w in weights(model).items()}
    before = copy.deepcopy(weights(model))
    groups = [{"params": list(model[6].parameters()), "lr": 0.2}]
    optimizer = made(method, model, groups=groups)
    for k in range(4):
        step(optimizer, model, k, plain=plain)
        if k == 1:
            optimizer.param_groups[0]["lr"] *= 0.5
    for name, weight in weights(model).items():
        torch.testing.assert_close(weight.norm(), first[name], rtol=1e-12, atol=0)
        assert float((weight - before[name]).norm()) > 0.05 * float(first[name])


@pytest.mark.parametrize("method", METHODS)
def test_both_loops_train_alike_and_a_loaded_state_goes_on_bit_for_bit(method: str) -> None:
    ends = []
    for plain in (False, True, None):
        model = network()
        optimizer = made(method, model)
        for k in range(5):
            if plain is None and k == 3:
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
                model = network()
                model.load_state_dict(saved[0])
                optimizer = made(method, model)
                optimizer.load_state_dict(saved[1])
            step(optimizer, model, k, plain=plain is not False)
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-9, atol=1e-10)
    assert torch.equal(ends[1], ends[2])


@pytest.mark.parametrize("precision", ["bfloat16", "mixed-bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_in_low_precision_rounding_errors_of_the_norm_do_not_add_up(method: str, precision: str) -> None:
    model = network(torch.bfloat16 if precision == "bfloat16" else torch.float32)
    first = {n: w.double().norm() for n, w in weights(model).items()}
    optimizer = made(method, model, precision=precision)
    for k in range(12):
        step(optimizer, model, k)
    for name, weight in weights(model).items():  # rounded by chance: an entry's relative error is below 2⁻⁷
        torch.testing.assert_close(weight.double().norm(), first[name], rtol=2.0**-7, atol=0)


def test_nesterov_composed_with_sgd_is_torchs() -> None:
    mine, theirs = network(), network()
    settings = {"on_gradient": [{"use": "nesterov", "beta": 0.8, "bias_correction": False}]}
    optimizer = curvlab.optimizer("sgd", mine, lr=0.1 / 0.2, settings=settings)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.1, momentum=0.8, nesterov=True)
    for k in range(6):
        step(optimizer, mine, k)
        sgd.zero_grad()
        x, y = batch(k)
        nn.functional.cross_entropy(theirs(x), y).backward()
        sgd.step()
    for p, q in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"on_update": [{"use": "hyperball"}, {"use": "weight-decay", "rate": 0.1}]},
            "on_update.0: Hyperball chooses where the step ends, so nothing may follow it",
        ),
        (
            {"on_gradient": [{"use": "hyperball"}]},
            "on_gradient.0: Hyperball chooses where the step ends, so nothing may follow it",
        ),
        (
            {"on_update": [{"use": "hyperball"}], "step": {"use": "armijo"}},
            "on_update.0: Hyperball must know the rate of a step in advance, and Armijo searches for it",
        ),
    ],
)
def test_a_part_that_would_move_the_end_of_a_step_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace(".", r"\.")):
        curvlab.optimizer("sgd", network(), settings=settings)
