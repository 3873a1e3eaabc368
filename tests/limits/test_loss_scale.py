"""A loss times a constant trains alike, to rounding: methods whose documentation calls them scale-free."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.objectives.losses import CrossEntropy
from curvlab.objectives.supervised import objective
from curvlab.testing.problems import DTYPE, labels, normal
from curvlab.testing.scaled import Scaled
from tests.limits.registered import methods, optimizer

#: every method with a relative λ and lengths by a rule that is free of scale
FREE = ("kfac", "ekfac", "foof", "ikfac", "ingd", "singd")

#: their defaults, curvature renewed more often, and variants that stay free of scale
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FREE},
    "kfac, labels of the data": ("kfac", {"labels": "data"}),
    "kfac, exact damping": ("kfac", {"preconditioner.inverse": {"use": "eigen", "relative": True}}),
    "singd, diagonal": ("singd", {"structure": "diagonal"}),
    **{f"singd, {rule}": ("singd", {"grafting": rule}) for rule in ("unit", "block", "rows", "adam")},
}
STEPS = 7


def net() -> nn.Module:
    """Linear layers alone: what goes to AdamW has its eps in units of the gradient."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 1), nn.Tanh(), nn.Linear(1, 3)).to(DTYPE)


def made(case: str, model: nn.Module) -> CurvatureOptimizer:
    name, given = CASES[case]
    knobs = {k: v for k, v in given.items() if "." not in k}
    settings = {k: v for k, v in given.items() if "." in k}
    return optimizer(name, model, settings=settings, refresh=3, **knobs)


@cache
def trained(case: str, scale: float, *, plain: bool = False) -> Tensor:
    """θ after some steps on ``scale`` times cross-entropy."""
    model = net()
    ours, loss = made(case, model), Scaled(CrossEntropy(), scale)
    for k in range(STEPS):
        x, y = normal(12, 4, seed=k), labels(12, classes=3, seed=k)
        if plain:
            ours.zero_grad()
            (scale * nn.functional.cross_entropy(model(x), y)).backward()
            ours.step()
        else:
            ours.step(objective(model, loss, x, y))
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def assert_alike(actual: Tensor, expected: Tensor) -> None:
    assert (
        float((expected - torch.cat([p.detach().flatten() for p in net().parameters()])).abs().max()) > 1e-3
    )
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("scale", [100.0, 0.01, 1e6])
@pytest.mark.parametrize("case", CASES)
def test_a_loss_times_a_constant_trains_alike(case: str, scale: float) -> None:
    assert_alike(trained(case, scale), trained(case, 1.0))


@pytest.mark.parametrize("case", ["foof", "ikfac", "ingd", "singd", "kfac, labels of the data"])
def test_so_it_does_in_a_plain_loop(case: str) -> None:
    assert_alike(trained(case, 100.0, plain=True), trained(case, 1.0))


def test_the_scaled_loss_is_one() -> None:
    """Without grafting a step of gradient descent in the metric is 1/scale as long: the test can fail."""
    model = net()
    ours = optimizer("singd", model, grafting="none")
    x, y = normal(12, 4, seed=0), labels(12, classes=3, seed=0)
    before = [p.detach().clone() for p in model.parameters()]
    ours.step(objective(model, Scaled(CrossEntropy(), 100.0), x, y))
    moved = [p.detach() - b for p, b in zip(model.parameters(), before, strict=True)]
    twin = net()
    other = optimizer("singd", twin, grafting="none")
    other.step(objective(twin, CrossEntropy(), x, y))
    for m, p, b in zip(moved, twin.parameters(), before, strict=True):
        torch.testing.assert_close(100.0 * m, p.detach() - b, rtol=1e-8, atol=1e-12)


def test_every_method_that_is_free_of_scale_is_here() -> None:
    assert set(FREE) <= set(methods())
