"""Parameter groups: live as in torch, and without a say where they do not differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler

import curvlab
from curvlab.errors import ConfigError
from tests.engine.composed import batch, network, same

METHODS: dict[str, Mapping[str, Any]] = {
    "adamw": {},
    "sgd": {},
    "kfac": {"labels": "data", "refresh": 2},
    "foof": {"refresh": 2},
    "soap": {},
    "singd": {"refresh": 2},
}


def layers() -> nn.Module:
    """No part of it is the fallback's, whose rate is a multiple of its own."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def made(name: str, model: nn.Module, **more: Any) -> torch.optim.Optimizer:
    return curvlab.optimizer(name, model, **{**METHODS.get(name, {}), **more})


def go(model: nn.Module, opt: torch.optim.Optimizer, steps: range) -> None:
    for k in steps:
        opt.zero_grad()
        x, y = batch(k)
        F.cross_entropy(model(x), y).backward()
        opt.step()


def close(a: nn.Module, b: nn.Module, **tolerance: float) -> None:
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, msg=lambda m, n=name: f"{n}: {m}", **tolerance)  # type: ignore[misc]


@pytest.mark.parametrize("name", METHODS)
def test_groups_that_do_not_differ_are_one(name: str) -> None:
    a, b = network(), network()
    one = made(name, a, lr=1e-2)
    two = made(name, b, lr=1e-2, groups=[{"params": ["*.bias"], "lr": 1e-2}, {"params": "3.weight"}])
    assert [len(g["params"]) for g in two.param_groups] == [2, 3, 1]
    for k in range(5):
        go(a, one, range(k, k + 1))
        go(b, two, range(k, k + 1))
    assert same(a, b)


def test_adamw_with_groups_is_torchs() -> None:
    a, b = network(), network()
    mine = made(
        "adamw", a, lr=1e-2, weight_decay=0.1, groups=[{"params": "*.bias", "weight_decay": 0.0, "lr": 3e-3}]
    )
    weights = [p for n, p in b.named_parameters() if not n.endswith("bias")]
    biases = [p for n, p in b.named_parameters() if n.endswith("bias")]
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0, "lr": 3e-3}]
    theirs = torch.optim.AdamW(groups, lr=1e-2)
    for k in range(6):
        if k == 3:
            for opt in (mine, theirs):
                opt.param_groups[0]["weight_decay"] = 0.02
                opt.param_groups[1]["lr"] = 2e-2
        go(a, mine, range(k, k + 1))
        go(b, theirs, range(k, k + 1))
    close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("key", ["lr", "weight_decay", "momentum", "damping"])
@pytest.mark.parametrize("name", ["kfac", "singd", "foof"])
def test_what_is_set_in_a_group_is_what_is_given_when_it_is_made(name: str, key: str) -> None:
    given, value = {"lr": 1e-2, "weight_decay": 0.0, "momentum": 0.9, "damping": 1e-2}, 0.3
    a, b, c = layers(), layers(), layers()
    set_later, fresh = made(name, a, **given), made(name, b, **{**given, key: value})
    set_later.param_groups[0][key] = value
    for model, opt in ((a, set_later), (b, fresh)):
        go(model, opt, range(4))
    close(a, b, rtol=1e-9, atol=1e-12)
    go(c, made(name, c, **given), range(4))
    assert not same(a, c)


def test_momentum_of_its_own_goes_on_from_the_state_that_was_shared() -> None:
    """A group that is given another momentum in mid-training: torch's SGD keeps its buffers, too."""
    a, b = network(), network()
    mine = made("sgd", a, lr=0.1, momentum=0.9, groups=[{"params": "3.*"}])
    theirs = torch.optim.SGD(
        [{"params": [*b[0].parameters(), *b[1].parameters()]}, {"params": list(b[3].parameters())}],
        lr=0.1,
        momentum=0.9,
    )
    for k in range(6):
        for opt in (mine, theirs):
            opt.param_groups[1]["momentum"] = 0.9 if k < 3 else 0.5
        go(a, mine, range(k, k + 1))
        go(b, theirs, range(k, k + 1))
    close(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("kind", ["OneCycleLR", "CyclicLR"])
@pytest.mark.parametrize(("name", "torchs"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_schedulers_that_cycle_momentum_do_what_they_do_to_torchs(name: str, torchs: Any, kind: str) -> None:
    knobs = {"momentum": 0.9, "weight_decay": 0.0} if name == "sgd" else {"weight_decay": 0.01}

    def scheduler(opt: torch.optim.Optimizer) -> Any:
        if kind == "OneCycleLR":
            return lr_scheduler.OneCycleLR(opt, max_lr=0.05, total_steps=12)
        return lr_scheduler.CyclicLR(opt, 1e-3, 5e-2, step_size_up=3)

    a, b = network(), network()
    mine, theirs = made(name, a, lr=1e-2, **knobs), torchs(b.parameters(), lr=1e-2, **knobs)
    for model, opt in ((a, mine), (b, theirs)):
        schedule = scheduler(opt)
        for k in range(10):
            go(model, opt, range(k, k + 1))
            schedule.step()
    close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["kfac", "singd", "ekfac", "foof", "soap", "shampoo", "muon", "ikfac", "ingd"]
)
def test_schedulers_that_cycle_momentum_take_every_method_that_has_it(name: str) -> None:
    model = network()
    opt = made(name, model, **({"labels": "data"} if name == "ekfac" else {}))
    schedule = lr_scheduler.OneCycleLR(opt, max_lr=1e-2, total_steps=6)
    for k in range(5):
        go(model, opt, range(k, k + 1))
        schedule.step()
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())


@pytest.mark.parametrize("name", METHODS)
def test_a_rate_of_zero_at_first_is_the_groups_later(name: str) -> None:
    still = network()
    go(still, made(name, still, lr=0.0), range(1))
    assert same(still, network())
    a, b = layers(), layers()
    zero, fresh = made(name, a, lr=0.0), made(name, b, lr=1e-2)
    zero.param_groups[0]["lr"] = 1e-2
    go(a, zero, range(3))
    go(b, fresh, range(3))
    close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["kfac", "singd", "muon"])
def test_the_fallback_of_a_rate_that_was_zero_has_its_own_rate_and_follows_the_groups(name: str) -> None:
    a, b = network(), network()
    zero, fresh = made(name, a, lr=0.0), made(name, b, lr=1e-2)
    for k, lr in enumerate((1e-2, 1e-2, 4e-3, 8e-3)):
        for model, opt in ((a, zero), (b, fresh)):
            opt.param_groups[0]["lr"] = lr
            go(model, opt, range(k, k + 1))
    close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sgd", "damping"),
        ("kfac", "betas"),
        ("adamw", "maximize"),
        ("adamw", "momentum"),
        ("lbfgs", "momentum"),
    ],
)
def test_a_key_that_the_method_does_not_have_is_refused_by_name(name: str, key: str) -> None:
    model = network()
    opt = made(name, model)
    opt.param_groups[0][key] = 0.5
    x, y = batch(0)
    with pytest.raises(ConfigError, match=f'{key} in param_groups is not a setting of method "{name}"'):
        opt.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))


def test_a_layer_in_two_groups_may_not_differ_in_what_its_arm_shares() -> None:
    with pytest.raises(ConfigError, match='layer "0" are in groups that differ in damping'):
        made("kfac", network(), groups=[{"params": "*.bias", "damping": 0.5}])
    with pytest.raises(ConfigError, match="steps all parameters at once.*only in lr"):
        curvlab.optimizer("kfac-pinn", network(), labels="data", groups=[{"params": "3.*", "momentum": 0.5}])


def test_a_group_may_be_added_for_parameters_that_were_frozen_or_new() -> None:
    model = network()
    model[3].requires_grad_(False)
    opt = made("adamw", model, lr=1e-2)
    model[3].requires_grad_(True)
    opt.add_param_group({"params": model[3].parameters(), "lr": 0.0})
    before = model[3].weight.detach().clone()
    go(model, opt, range(2))
    assert torch.equal(model[3].weight, before)
    opt.param_groups[1]["lr"] = 1e-2
    go(model, opt, range(2))
    assert not torch.equal(model[3].weight, before)
    with pytest.raises(ValueError, match="more than one parameter group"):
        opt.add_param_group({"params": model[0].parameters()})


def test_states_with_several_groups_come_back_bit_for_bit_and_others_are_refused() -> None:
    from curvlab.errors import CheckpointError

    groups = [{"params": "3.*", "damping": 0.5}, {"params": "*.bias", "weight_decay": 0.1}]
    groups[1]["params"] = "0.bias"
    a = network()
    opt = made("kfac", a, groups=groups)
    go(a, opt, range(3))
    b = network()
    b.load_state_dict(a.state_dict())
    other = made("kfac", b, groups=groups)
    other.load_state_dict(opt.state_dict())
    go(a, opt, range(3, 6))
    go(b, other, range(3, 6))
    assert same(a, b)
    with pytest.raises(CheckpointError, match="groups of"):
        made("kfac", network()).load_state_dict(opt.state_dict())
    for foreign in ({}, {"state": {}, "param_groups": []}):
        with pytest.raises(CheckpointError, match="does not come from a curvlab optimizer"):
            opt.load_state_dict(foreign)
