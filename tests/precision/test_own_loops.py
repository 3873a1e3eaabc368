"""Low precision in a user's own loop: a bf16 model, autocast, and torch's GradScaler."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import curvlab
from curvlab.errors import ConfigError
from tests.grids import rotated
from tests.precision.networks import IN_PLAIN_LOOPS, METHODS, batch, network

HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
STEPS = 30

pytestmark = pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")


def falls(losses: list[float]) -> bool:
    return sum(losses[-8:]) < 0.998 * sum(losses[:8])


@pytest.mark.parametrize("method", IN_PLAIN_LOOPS)
def test_a_bfloat16_model_trains_without_another_word(method: str) -> None:
    model = network(torch.bfloat16)
    optimizer = curvlab.optimizer(method, model, **IN_PLAIN_LOOPS[method])
    losses = []
    for k in range(STEPS):
        x, y = batch(k, torch.bfloat16)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert falls(losses)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(("method", "around"), rotated(IN_PLAIN_LOOPS, ("forward", "everything")))
def test_autocast_around_the_forward_pass_or_everything(method: str, around: str) -> None:
    model = network()
    optimizer = curvlab.optimizer(method, model, **IN_PLAIN_LOOPS[method])
    losses = []

    def cast() -> torch.autocast:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    for k in range(STEPS):
        x, y = batch(k)
        optimizer.zero_grad()
        with cast() if around == "everything" else nullcontext():
            with cast():
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        losses.append(float(loss.detach()))
    assert falls(losses)


@pytest.mark.parametrize(("method", "dtype"), rotated(METHODS, HALVES))
def test_an_objective_under_the_callers_autocast(method: str, dtype: str) -> None:
    model = network()
    optimizer = curvlab.optimizer(method, model)
    losses = []
    for _ in range(8):
        x, y = batch(0)
        with torch.autocast("cpu", dtype=HALVES[dtype]):
            losses.append(float(optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("method", IN_PLAIN_LOOPS)
def test_a_scaler_with_unscaling_and_clipping(method: str) -> None:
    """float16 under autocast, the scale found by the scaler itself."""
    model = network()
    optimizer = curvlab.optimizer(method, model, **IN_PLAIN_LOOPS[method])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    losses = []
    for k in range(STEPS):
        x, y = batch(k)
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16):
            loss = F.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(loss.detach()))
    assert falls(losses)
    assert optimizer.steps >= STEPS - 12


@pytest.mark.parametrize(
    ("precision", "words"),
    [("mixed-bfloat16", "use torch.autocast in"), ("mixed-float16", "autocast and torch.amp.GradScaler")],
)
def test_a_precision_of_passes_is_refused_where_the_passes_are_the_callers(
    precision: str, words: str
) -> None:
    model = network()
    optimizer = curvlab.optimizer("adamw", model, precision=precision)
    x, y = batch(0)
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(ConfigError, match=words):
        optimizer.step()


def test_a_functional_use_in_bfloat16_is_still_found_out() -> None:
    """The comparison of rows and gradients is as sharp as bfloat16 allows."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 20), nn.Linear(20, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.b(torch.relu(self.a(x)))
            return y + F.linear(x[:, :20], self.b.weight)

    for objective in (False, True):
        torch.manual_seed(0)
        model = Twice().to(torch.bfloat16)
        optimizer = curvlab.optimizer("kfac", model, labels="data")
        x, y = batch(0, torch.bfloat16)
        asked = curvlab.objective(model, nn.CrossEntropyLoss(), x, y) if objective else None
        if not objective:
            F.cross_entropy(model(x), y).backward()
        with pytest.warns(UserWarning, match='layer "b" do not explain its gradient'):
            optimizer.step(asked)
