"""A plain loop with torch's own tools around it: what they do to SGD's step they do to ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.objectives.supervised import objective
from tests.engine.composed import optimizer
from tests.objectives.asking import made


def pair(**knobs: Any) -> tuple[nn.Module, CurvatureOptimizer, nn.Module, torch.optim.SGD, Tensor, Tensor]:
    """Our sgd without momentum beside torch's, on equal models."""
    (model, x, y), (twin, _, _) = made("in-place activation"), made("in-place activation")
    mine = optimizer("sgd", model, lr=0.1, momentum=0.0, **knobs)
    return model, mine, twin, torch.optim.SGD(twin.parameters(), lr=0.1), x, y


def equal(model: nn.Module, twin: nn.Module) -> None:
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_clipping_the_gradients_shortens_the_step() -> None:
    model, mine, twin, theirs, x, y = pair()
    for m, o in ((model, mine), (twin, theirs)):
        o.zero_grad()
        F.mse_loss(m(x), y).backward()
        assert nn.utils.clip_grad_norm_(m.parameters(), 1e-2) > 1e-2
        o.step()
    equal(model, twin)


def test_a_grad_scaler_scales_back_and_skips_what_overflowed() -> None:
    model, mine, twin, theirs, x, y = pair()
    for m, o in ((model, mine), (twin, theirs)):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for k in range(4):
            o.zero_grad()
            loss = F.mse_loss(m(x), y) * (torch.inf if k == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.step(o)
            scaler.update()
        assert scaler.get_scale() == 2.0**9
    assert mine.steps == 3
    equal(model, twin)


SCHEDULERS: dict[str, Callable[[torch.optim.Optimizer], Any]] = {
    "StepLR": lambda o: torch.optim.lr_scheduler.StepLR(o, 2, gamma=0.5),
    "CosineAnnealingLR": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 6),
    "LambdaLR": lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda k: 1.0 / (1 + k)),
    "OneCycleLR": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.5, total_steps=8, cycle_momentum=False),
    "CyclicLR": lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.01, 0.3, 2, cycle_momentum=False),
    "SequentialLR": lambda o: torch.optim.lr_scheduler.SequentialLR(
        o,
        [
            torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=3),
            torch.optim.lr_scheduler.ExponentialLR(o, 0.9),
        ],
        [3],
    ),
    "by hand": lambda o: Halving(o),
}


class Halving:
    """No scheduler of torch's: writes ``lr`` into the group."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.group = optimizer.param_groups[0]

    def step(self) -> None:
        self.group["lr"] *= 0.5


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # SequentialLR uses what torch itself deprecates
@pytest.mark.parametrize("name", SCHEDULERS)
def test_torchs_schedulers_change_the_step_as_they_change_sgds(name: str) -> None:
    model, mine, twin, theirs, x, y = pair()
    for m, o in ((model, mine), (twin, theirs)):
        scheduler = SCHEDULERS[name](o)
        for _ in range(6):
            o.zero_grad()
            F.mse_loss(m(x), y).backward()
            o.step()
            scheduler.step()
    assert mine.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"], rel=1e-12)
    equal(model, twin)


def test_a_rate_written_before_a_scheduler_is_made_is_its_base() -> None:
    model, mine, twin, theirs, x, y = pair()
    for m, o in ((model, mine), (twin, theirs)):
        o.param_groups[0]["lr"] = 0.03
        scheduler = torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)
        for _ in range(3):
            o.zero_grad()
            F.mse_loss(m(x), y).backward()
            o.step()
            scheduler.step()
    equal(model, twin)


def test_a_closure_is_called_once_and_its_loss_returned() -> None:
    model, mine, twin, theirs, x, y = pair()

    def closure(m: nn.Module, o: torch.optim.Optimizer) -> Tensor:
        o.zero_grad()
        loss = F.mse_loss(m(x), y)
        loss.backward()
        return loss

    with torch.no_grad():
        found = [o.step(lambda m=m, o=o: closure(m, o)) for m, o in ((model, mine), (twin, theirs))]
    assert torch.equal(*found)
    equal(model, twin)
    assert mine.last is not None
    assert mine.last.loss == found[1].item()


def test_gradients_accumulate_until_they_are_zeroed() -> None:
    model, mine, twin, theirs, x, y = pair()
    for m, o in ((model, mine), (twin, theirs)):
        o.zero_grad()
        for part in (slice(0, 3), slice(3, 7)):
            F.mse_loss(m(x[part]), y[part]).backward()
        o.step()
    equal(model, twin)


@pytest.mark.parametrize("labels", ["data", "none"])
def test_curvature_methods_train_alike_in_a_plain_loop_and_with_an_objective(labels: str) -> None:
    (model, x, y), (twin, _, _) = made("in-place activation"), made("in-place activation")
    mine, theirs = (optimizer("kfac", m, labels=labels, refresh=2) for m in (model, twin))
    for _ in range(5):
        mine.zero_grad()
        F.mse_loss(model(x), y).backward()
        mine.step()
        theirs.step(objective(twin, nn.MSELoss(), x, y))
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)
