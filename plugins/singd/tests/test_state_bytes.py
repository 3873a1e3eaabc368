"""AdamW's memory: what SINGD holds, by its own count and by the storages that are alive."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import nn

import curvlab
from curvlab.config import build_method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.precision.full import Full
from curvlab.tasks.fashion_convnet import FashionConvnet
from curvlab.tasks.fashion_mnist import FashionMnist
from curvlab.tasks.fashion_vit import FashionVit
from tests.grids import thinned
from tests.limits.registered import registry

NETWORKS = {"mlp": FashionMnist().model, "convnet": FashionConvnet().model, "vit": FashionVit().model}

each_network = pytest.mark.parametrize("network", NETWORKS)


def alive() -> dict[int, int]:
    """Bytes of every storage that some tensor still holds, by its address."""
    gc.collect()
    found = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, nn.Parameter) and thing.layout is torch.strided:
            storage = thing.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def singd(model: nn.Module, **knobs: Any) -> CurvatureOptimizer:
    return CurvatureOptimizer(build_method(registry(), "singd", knobs), model, backend=Full("float32"))


def adamw_bytes(model: nn.Module) -> int:
    """What torch's AdamW holds after a step: two moments and a count for each parameter."""
    optimizer = torch.optim.AdamW(model.parameters())
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    held = sum(t.nbytes for state in optimizer.state.values() for t in state.values())
    optimizer.zero_grad()
    return held


@each_network
def test_with_diagonal_factors_it_holds_less_than_adamw(network: str) -> None:
    model = NETWORKS[network]()
    assert singd(model, structure="diagonal").state_bytes() <= adamw_bytes(model)


@pytest.mark.parametrize(
    ("network", "structure"),
    thinned(
        NETWORKS,
        ("diagonal", "hierarchical", "auto"),
        few={("mlp", "hierarchical"), ("convnet", "diagonal"), ("vit", "auto")},
    ),
)
def test_the_count_is_what_is_alive(network: str, structure: str) -> None:
    model = NETWORKS[network]()
    singd(model, structure=structure)  # what is made once for all, such as the vectors of power iteration
    before = alive()
    optimizer = singd(model, structure=structure)
    new = {at: size for at, size in alive().items() if at not in before}
    assert sum(new.values()) == pytest.approx(optimizer.state_bytes(), abs=64), "beyond counters and the like"
    assert optimizer.state_bytes() > 0


def test_an_optimizer_by_name_counts_the_same() -> None:
    model = NETWORKS["mlp"]()
    by_name = curvlab.optimizer("singd", model, structure="diagonal")
    assert by_name.state_bytes() == singd(NETWORKS["mlp"](), structure="diagonal").state_bytes()
