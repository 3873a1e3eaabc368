"""Gram structures where they are used: KFAC's factors, trained, saved and resumed."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from curvlab.config import build_method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import ConfigError
from curvlab.objectives.supervised import objective
from curvlab.precision.full import Full
from tests.limits.registered import registry

#: as a configuration gives them
STRUCTURES: dict[str, Any] = {
    "block-diagonal": {"use": "block-diagonal", "size": 3},
    "low-rank": {"use": "low-rank", "rank": 2},
    "auto by name": "auto",
    "auto": {"use": "auto", "limit": 5, "wide": {"use": "diagonal"}},
    "nested": {"use": "auto", "limit": 4, "narrow": {"use": "low-rank", "rank": 1}, "wide": "block-diagonal"},
}
METHODS = ("kfac", "ekfac", "foof")

each_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES)
each_method = pytest.mark.parametrize("name", METHODS)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 7), nn.Tanh(), nn.Linear(7, 3)).double()


def optimizer(name: str, model: nn.Module, structure: Any, seed: int = 0, **knobs: Any) -> CurvatureOptimizer:
    estimator = "preconditioner.estimator"
    settings = {f"{estimator}.A": structure, f"{estimator}.B": structure}
    method = build_method(registry(), name, {"refresh": 2, **knobs}, settings)
    return CurvatureOptimizer(method, model, backend=Full("float64"), seed=seed, name=name)


def train(model: nn.Module, opt: CurvatureOptimizer, steps: range) -> Tensor:
    """The loss at the last step."""
    for k in steps:
        g = torch.Generator().manual_seed(100 + k % 3)
        x = torch.randn(8, 4, generator=g, dtype=torch.float64)
        loss = opt.step(objective(model, nn.CrossEntropyLoss(), x, x[:, :3].argmax(1)))
    return torch.as_tensor(loss)


def theta(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@each_structure
@each_method
def test_training_with_structured_factors_decreases_the_loss(name: str, structure: Any) -> None:
    model = network()
    opt = optimizer(name, model, structure, lr=0.03, damping=0.1)
    first = train(model, opt, range(3))
    assert float(train(model, opt, range(3, 40))) < 0.8 * float(first)


@each_structure
@each_method
@pytest.mark.parametrize("way", ["saved", "distributed"])
def test_a_resumed_run_is_the_same_to_the_bit(name: str, structure: Any, way: str) -> None:
    model = network()
    opt = optimizer(name, model, structure)
    train(model, opt, range(3))  # in mid-cadence
    twin = copy.deepcopy(model)
    other = optimizer(name, twin, structure, seed=99)
    if way == "saved":
        file = io.BytesIO()
        torch.save(opt.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
    else:
        set_optimizer_state_dict(twin, other, copy.deepcopy(get_optimizer_state_dict(model, opt)))
    train(model, opt, range(3, 9))
    train(twin, other, range(3, 9))
    assert torch.equal(theta(model), theta(twin))


@each_method
@pytest.mark.parametrize(
    "structure",
    [
        {"use": "block-diagonal", "size": 8},
        {"use": "low-rank", "rank": 8},
        {"use": "auto", "limit": 8, "wide": "diagonal"},
    ],
    ids=lambda s: s["use"],
)
def test_a_structure_that_is_large_enough_trains_as_dense_factors_do(name: str, structure: Any) -> None:
    """Dimensions are 3 to 8: nothing is left out."""
    ours, dense = network(), network()
    train(ours, optimizer(name, ours, structure), range(8))
    train(dense, optimizer(name, dense, "dense"), range(8))
    assert float((theta(dense) - theta(network())).abs().max()) > 1e-4
    assert float((theta(ours) - theta(dense)).abs().max()) < 1e-10


def test_a_state_is_as_large_as_the_structures_say() -> None:
    """Factors and inverses of 5 and 7, 8 and 3 dimensions, 8 bytes a number; nothing else depends on them."""
    dense, low = (optimizer("kfac", network(), s).state_bytes() for s in ("dense", STRUCTURES["low-rank"]))
    assert dense - low == 2 * 8 * sum(d * d - (2 * d + 3) for d in (5, 7, 8, 3))


def test_a_choice_with_an_option_that_is_no_gram_is_refused_at_once() -> None:
    structure = {"use": "auto", "wide": {"use": "lower-triangular"}}
    with pytest.raises(ConfigError, match=r"layer-covariance needs .* Gram.* LowerTriangular is not one"):
        optimizer("kfac", network(), structure)
