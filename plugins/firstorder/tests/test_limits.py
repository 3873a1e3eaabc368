"""The neighbors that these methods must equal: torch's own optimizers, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.objectives.supervised import objective

STEPS = 20
Torch = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.LayerNorm(7), nn.Linear(7, 3)).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 5, dtype=torch.float64, generator=g), torch.randint(0, 3, (8,), generator=g))
        for _ in range(STEPS)
    ]


def trained_by_torch(make: Torch) -> list[Tensor]:
    model, criterion = network(), nn.CrossEntropyLoss()
    optimizer = make(model.parameters())
    for x, y in batches():
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    return [p.detach() for p in model.parameters()]


def assert_same(ours: nn.Module, theirs: list[Tensor]) -> None:
    for (name, mine), other in zip(ours.named_parameters(), theirs, strict=True):
        off = float((mine.detach() - other).abs().max())
        assert off <= 1e-12, f"{name}: {off} apart after {STEPS} steps"


ADAMW = {"lr": 1e-2, "beta1": 0.8, "beta2": 0.99, "eps": 1e-6, "weight_decay": 0.1}
SGD = {"lr": 1e-2, "momentum": 0.9, "weight_decay": 0.1}
CASES: dict[str, tuple[str, dict[str, Any], Torch]] = {
    "adamw": (
        "adamw",
        ADAMW,
        lambda p: torch.optim.AdamW(p, lr=1e-2, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.1),
    ),
    "adamw with torch's defaults": ("adamw", {}, lambda p: torch.optim.AdamW(p)),
    "adamw without decay is adam": (
        "adamw",
        {"lr": 3e-3, "weight_decay": 0.0},
        lambda p: torch.optim.Adam(p, lr=3e-3),
    ),
    "sgd": ("sgd", SGD, lambda p: torch.optim.SGD(p, **SGD)),
    "sgd without momentum": (
        "sgd",
        {"lr": 1e-1, "momentum": 0.0},
        lambda p: torch.optim.SGD(p, lr=1e-1),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_composition_equals_torch(case: str, optimizer: Any) -> None:
    name, knobs, theirs = CASES[case]
    model, criterion = network(), nn.CrossEntropyLoss()
    ours = optimizer(name, model, **knobs)
    for x, y in batches():
        ours.step(objective(model, criterion, x, y))
    assert_same(model, trained_by_torch(theirs))


@pytest.mark.parametrize("case", ["adamw", "sgd"])
def test_composition_equals_torch_in_a_plain_loop(case: str, optimizer: Any) -> None:
    name, knobs, theirs = CASES[case]
    model, criterion = network(), nn.CrossEntropyLoss()
    ours = optimizer(name, model, **knobs)
    for x, y in batches():
        ours.zero_grad()
        criterion(model(x), y).backward()
        ours.step()
    assert_same(model, trained_by_torch(theirs))


def test_adamw_holds_what_torch_holds(optimizer: Any) -> None:
    """Two scalars per parameter; torch counts its steps in tensors beside them."""
    model = network()
    ours = optimizer("adamw", model)
    x, y = batches()[0]
    ours.step(objective(model, nn.CrossEntropyLoss(), x, y))
    assert ours.state_bytes() == 2 * sum(p.nbytes for p in model.parameters())


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon", "sophia"])
def test_a_resumed_run_goes_on_as_if_never_stopped(name: str, optimizer: Any) -> None:
    criterion, data = nn.CrossEntropyLoss(), batches()

    def steps(model: nn.Module, ours: Any, some: list[tuple[Tensor, Tensor]]) -> None:
        for x, y in some:
            ours.step(objective(model, criterion, x, y))

    whole = network()
    steps(whole, optimizer(name, whole), data)
    first = network()
    before = optimizer(name, first)
    steps(first, before, data[:7])
    second = network()
    second.load_state_dict(first.state_dict())
    after = optimizer(name, second)
    after.load_state_dict(before.state_dict())
    steps(second, after, data[7:])
    for p, q in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(p, q)
