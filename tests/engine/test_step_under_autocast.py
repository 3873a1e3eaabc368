"""step() inside the caller's autocast is the step outside of it, of the model under autocast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import curvlab
from tests.engine.composed import batch, network, same

PLAIN: dict[str, Mapping[str, Any]] = {
    "adamw": {},
    "kfac": {"labels": "data", "refresh": 1},
    "ekfac": {"labels": "data", "refresh": 1},
    "singd": {"refresh": 1},
    "soap": {},
    "sirf-shampoo": {},
}


def small() -> nn.Module:
    return network(dtype=torch.float32)


@pytest.mark.parametrize("name", PLAIN)
def test_in_a_plain_loop_it_is_the_same_step(name: str) -> None:
    a, b = small(), small()
    inside, outside = (curvlab.optimizer(name, m, lr=1e-2, **PLAIN[name]) for m in (a, b))
    for k in range(3):
        x, y = batch(k)
        x = x.float()
        inside.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            F.cross_entropy(a(x), y).backward()
            inside.step()
        outside.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(b(x), y)
        loss.backward()
        outside.step()
    assert same(a, b)


@pytest.mark.parametrize("name", ["kfac", "hf-gn", "hf-martens", "lbfgs"])
def test_an_objective_is_one_function_in_the_whole_step(name: str) -> None:
    model, (x, y) = small(), batch(0)
    opt = curvlab.optimizer(name, model)
    losses = []
    for _ in range(6):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(float(opt.step(curvlab.objective(model, nn.CrossEntropyLoss(), x.float(), y))))
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        first = float(F.cross_entropy(small()(x.float()), y))
    assert losses[0] == pytest.approx(first, rel=1e-5)
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_a_model_converted_after_the_optimizer_was_made_is_refused() -> None:
    from curvlab.errors import ConfigError

    model = small()
    opt = curvlab.optimizer("adamw", model)
    model.double()
    x, y = batch(0)
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(
        ConfigError, match=r"are torch.float64.*were torch.float32.*\n.*then make the optimizer"
    ):
        opt.step()
