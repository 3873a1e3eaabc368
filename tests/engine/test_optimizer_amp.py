"""Under ``torch.amp.GradScaler`` nothing but the scale changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.errors import ConfigError


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)


def trained(knobs: dict[str, object], scale: float | None, reduction: str = "mean") -> list[Tensor]:
    model = network()
    method = str(knobs.get("method", "kfac"))
    others = {k: v for k, v in knobs.items() if k != "method"}
    optimizer = curvlab.optimizer(method, model, reduction=reduction, **others)
    criterion = nn.CrossEntropyLoss(reduction=reduction)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    for k in range(6):
        x, y = batch(k)
        optimizer.zero_grad()
        scaler.scale(criterion(model(x), y)).backward()
        scaler.step(optimizer)
        scaler.update()
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    "knobs",
    [{"labels": "data", "refresh": 2}, {"method": "foof", "refresh": 2}, {"method": "adamw"}],
    ids=str,
)
def test_a_scaled_loss_trains_the_same_parameters_bit_for_bit(
    knobs: dict[str, object], reduction: str
) -> None:
    plain, scaled = trained(knobs, None, reduction), trained(knobs, 2.0**12, reduction)
    assert all(torch.equal(a, b) for a, b in zip(plain, scaled, strict=True))  # powers of two round nowhere


def test_an_infinite_gradient_skips_the_step_and_is_not_counted() -> None:
    model = network()
    events: list[str] = []
    optimizer = curvlab.optimizer("kfac", model, labels="data")
    optimizer.on_event = lambda event: events.append(event.name)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = [p.detach().clone() for p in model.parameters()]
    x, y = batch(0)
    scaler.scale(nn.functional.cross_entropy(model(x), y) * torch.inf).backward()
    scaler.step(optimizer)
    scaler.update()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert optimizer.steps == 0
    assert events == ["skipped-by-scaler"]
    assert scaler.get_scale() == 2.0**9


@pytest.mark.parametrize(("method", "knobs"), [("kfac", {"labels": "data"}), ("singd", {}), ("foof", {})])
def test_unscaling_and_clipping_before_the_step_gives_the_steps_without_a_scaler(
    method: str, knobs: dict[str, Any]
) -> None:
    """In float32, where a scale that is a power of two rounds nothing."""
    models, scaler = (
        (network(), network()),
        torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2),
    )
    mine, theirs = (curvlab.optimizer(method, m, refresh=1, **knobs) for m in models)
    for k in range(4):
        x, y = batch(k)
        scaler.scale(nn.functional.cross_entropy(models[0](x), y)).backward()
        scaler.unscale_(mine)
        nn.functional.cross_entropy(models[1](x), y).backward()
        for model in models:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(mine)
        scaler.update()
        theirs.step()
        for model in models:
            model.zero_grad()
    for p, q in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-7)


def test_statistics_whose_scale_no_scaler_tells_are_refused() -> None:
    model = network()
    optimizer = curvlab.optimizer("kfac", model, labels="data")
    x, y = batch(0)
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.found_inf, optimizer.grad_scale = torch.zeros(()), None
    with pytest.raises(ConfigError, match="the scale of the layer statistics is not known"):
        optimizer.step()


def test_gradients_alone_may_be_unscaled_and_clipped_by_the_caller() -> None:
    model = network()
    optimizer = curvlab.optimizer("sgd", model, lr=1.0, momentum=0.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    before = torch.cat([p.detach().flatten() for p in model.parameters()])
    x, y = batch(0)
    scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
    scaler.step(optimizer)
    moved = torch.cat([p.detach().flatten() for p in model.parameters()]) - before
    assert float(moved.norm()) == pytest.approx(1e-2, rel=1e-3)
