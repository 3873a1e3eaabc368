"""mixed-float16: a step that overflows is as if its batch had not come."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import CheckpointError, Diverged
from tests.grids import rotated
from tests.precision.networks import METHODS, batch, network

STEPS = 9
#: small enough that nothing overflows but what is made to
SCALE = {"use": "mixed-float16", "scale": 16.0}


def made(method: str) -> tuple[nn.Module, CurvatureOptimizer, list[str]]:
    model, events = network(), list[str]()
    knobs: dict[str, Any] = {"lr": 1e-3} if method == "muon" else {}
    optimizer = curvlab.optimizer(method, model, precision=SCALE, **knobs)
    optimizer.on_event = lambda event: events.append(event.name)
    return model, optimizer, events


def step(model: nn.Module, optimizer: CurvatureOptimizer, x: Tensor, y: Tensor) -> None:
    optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))


@pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")
@pytest.mark.parametrize(("method", "at"), rotated(METHODS, (0, 3, 7)))
def test_it_equals_the_run_that_skipped_that_batch_bit_for_bit(method: str, at: int) -> None:
    """At the scale that the overflow leaves behind."""
    model, optimizer, events = made(method)
    torch.manual_seed(1)
    for k in range(STEPS):
        x, y = batch(k)
        step(model, optimizer, x * 1e6 if k == at else x, y)
    assert events.count("loss-scale-overflow") >= 1

    twin, other, _ = made(method)
    torch.manual_seed(1)
    skipped = 0
    for k in range(STEPS):
        if k == at:
            assert other.scale is not None
            other.scale.overflowed(k)
            skipped += 1
            continue
        step(twin, other, *batch(k))
    assert optimizer.steps == other.steps >= STEPS - skipped - 3
    mine, theirs = model.state_dict(), twin.state_dict()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    (tensors, plain), (others, other_plain) = optimizer.snapshot(), other.snapshot()
    assert plain == other_plain
    assert all(torch.equal(t, others[n]) for n, t in tensors.items())


def test_the_scale_falls_by_half_and_grows_after_good_steps() -> None:
    model = network()
    precision = {"use": "mixed-float16", "scale": 64.0, "interval": 2}
    optimizer = curvlab.optimizer("adamw", model, precision=precision)
    assert optimizer.scale is not None
    x, y = batch(0)
    seen = []
    for bad in (False, False, True, False, False, False):
        step(model, optimizer, x * 1e6 if bad else x, y)
        seen.append(optimizer.scale.value)
    assert seen == [64.0, 128.0, 64.0, 64.0, 128.0, 128.0]
    assert optimizer.steps == 5


def test_numbers_that_no_scale_can_mend_end_the_training_in_words() -> None:
    model = network()
    optimizer = curvlab.optimizer("adamw", model, precision={"use": "mixed-float16", "scale": 4.0})
    x, y = batch(0)
    for _ in range(2):
        step(model, optimizer, x * torch.inf, y)
    with pytest.raises(Diverged, match="not finite in float16, at a loss scale of 1 too"):
        step(model, optimizer, x * torch.inf, y)


def test_the_scale_comes_back_with_the_state() -> None:
    model = network()
    optimizer = curvlab.optimizer("adamw", model, precision=SCALE)
    x, y = batch(0)
    step(model, optimizer, x * 1e6, y)
    step(model, optimizer, x, y)
    other = curvlab.optimizer("adamw", network(), precision=SCALE)
    other.load_state_dict(optimizer.state_dict())
    assert other.scale is not None
    assert (other.scale.value, other.scale.good) == (8.0, 1)


@pytest.mark.parametrize("pair", ["full", [16.0], [0.0, 3], [16.0, "3"], None], ids=str)
def test_a_scale_that_is_none_is_refused_and_changes_nothing(pair: Any) -> None:
    _, optimizer, _ = made("adamw")
    tensors, plain = optimizer.snapshot()
    with pytest.raises(CheckpointError, match="loss_scale"):
        optimizer.restore(tensors, {**plain, "loss_scale": pair})
    assert optimizer.snapshot()[1] == plain
