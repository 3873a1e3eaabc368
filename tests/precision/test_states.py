"""States in low precision: by role, and back bit for bit."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import curvlab
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import ConfigError
from curvlab.testing.memory import alive
from tests.engine.test_optimizer_state import WAYS
from tests.grids import rotated, thinned
from tests.precision.networks import METHODS, batch, network

BF16 = torch.bfloat16

PRECISIONS: dict[str, Any] = {
    "bfloat16": {"use": "bfloat16"},
    "master": {"use": "bfloat16", "parameter_write": "master"},
    "all in bfloat16": {"use": "bfloat16", "factors": "bfloat16"},
}


def train(model: nn.Module, optimizer: CurvatureOptimizer, steps: range) -> list[float]:
    found = []
    for k in steps:
        x, y = batch(k, BF16)
        torch.manual_seed(k)  # of dropout
        found.append(float(optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))))
    return found


@pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")
@pytest.mark.parametrize(("method", "precision"), rotated(METHODS, PRECISIONS))
def test_after_a_load_training_goes_on_bit_for_bit_with_the_same_dtypes(method: str, precision: str) -> None:
    way = WAYS[list(METHODS).index(method) % len(WAYS)]
    model = network(BF16)
    optimizer = curvlab.optimizer(method, model, precision=PRECISIONS[precision])
    train(model, optimizer, range(4))
    twin = copy.deepcopy(model)
    other = curvlab.optimizer(method, twin, precision=PRECISIONS[precision])
    way(optimizer, other)
    assert train(twin, other, range(4, 8)) == train(model, optimizer, range(4, 8))
    mine, theirs = model.state_dict(), twin.state_dict()
    assert all(torch.equal(mine[n], theirs[n]) for n in mine)
    dtypes = [{n: t.dtype for n, t in o.snapshot()[0].items()} for o in (optimizer, other)]
    assert dtypes[0] == dtypes[1]


@pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")
@pytest.mark.parametrize("method", ["singd", "ingd", "ikfac", "sirf-shampoo", "adamw", "sgd", "muon"])
def test_what_only_products_touch_takes_half_the_bytes(method: str) -> None:
    whole, half = (curvlab.optimizer(method, network(dtype)) for dtype in (torch.float32, BF16))
    assert half.state_bytes() == whole.state_bytes() / 2


def test_roles_can_be_set_one_by_one() -> None:
    def dtypes(**given: str) -> set[torch.dtype]:
        optimizer = curvlab.optimizer("kfac", network(BF16), precision={"use": "bfloat16", **given})
        found = {t.dtype for t in optimizer.snapshot()[0].values()}
        return found - {torch.uint8}

    assert dtypes() == {torch.float32, BF16}  # factors, moments
    assert dtypes(factors="bfloat16") == {BF16}
    assert dtypes(moments="float32") == {torch.float32}
    assert dtypes(factors="float64", moments="float64") == {torch.float64}


def test_a_master_moves_where_its_parameter_cannot() -> None:
    """A hundred steps of 1/1000 of a unit in the last place; what others write is taken over."""
    model = nn.Linear(4, 1, bias=False).to(BF16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    precision = {"use": "bfloat16", "parameter_write": "master"}
    optimizer = curvlab.optimizer("sgd", model, lr=1e-4, momentum=0.0, precision=precision)
    for _ in range(100):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    (master,) = (t for n, t in optimizer.snapshot()[0].items() if "master" in n)
    assert torch.allclose(master, torch.full_like(master, 0.99), atol=1e-5)
    assert torch.equal(model.weight, master.to(BF16))
    with torch.no_grad():
        model.weight[0, 0] = 3.0
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert float(master[0, 0]) == pytest.approx(3.0 - 1e-4, abs=1e-6)
    assert float(master[0, 1]) == pytest.approx(0.99 - 1e-4, abs=1e-5)


@pytest.mark.parametrize(("write", "moves"), [("stochastic", True), ("nearest", False)])
def test_small_steps_add_up_only_where_rounding_keeps_the_mean(write: str, moves: bool) -> None:
    model = nn.Linear(400, 10, bias=False).to(BF16)
    with torch.no_grad():
        model.weight.fill_(1.0)
    precision = {"use": "bfloat16", "parameter_write": write}
    optimizer = curvlab.optimizer("sgd", model, lr=1e-4, momentum=0.0, precision=precision)
    for _ in range(100):
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    mean = float(model.weight.detach().float().mean())
    assert mean == pytest.approx(0.99, abs=1e-3) if moves else mean == 1.0


@pytest.mark.filterwarnings("ignore::curvlab.engine.coverage.CoverageWarning")
@pytest.mark.parametrize(
    ("method", "precision"),
    thinned(
        ("singd", "kfac", "ekfac", "soap", "adamw", "hf-gn"),
        PRECISIONS,
        few={
            ("singd", "bfloat16"),
            ("kfac", "all in bfloat16"),
            ("ekfac", "bfloat16"),
            ("soap", "master"),
            ("adamw", "master"),
            ("hf-gn", "bfloat16"),
        },
    ),
)
def test_between_steps_nothing_else_is_held(method: str, precision: str) -> None:
    def trained() -> CurvatureOptimizer:
        model = network(BF16)
        optimizer = curvlab.optimizer(method, model, precision=PRECISIONS[precision])
        train(model, optimizer, range(3))
        optimizer.zero_grad()
        return optimizer

    trained()  # constants that all optimizers of a process share are made here
    before = alive()
    optimizer = trained()
    of_model = {t.untyped_storage().data_ptr() for t in optimizer.model.state_dict().values()}
    held = {at: size for at, size in alive().items() if at not in before and at not in of_model}
    assert sum(held.values()) == optimizer.state_bytes()


@pytest.mark.parametrize("use", ["float32", "float16", "mixed-bfloat16"])
def test_a_rounding_of_states_that_are_not_rounded_is_refused(use: str) -> None:
    given = {"use": use, "averages": "stochastic"}
    model = network().half() if use == "float16" else network()
    with pytest.raises(ConfigError, match=r"averages = \"stochastic\" says how states in bfloat16"):
        curvlab.optimizer("adamw", model, precision=given)
    curvlab.optimizer("adamw", model, precision={**given, "moments": "bfloat16"})
