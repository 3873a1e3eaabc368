"""Parameters without a gradient in a step neither move nor decay, and their moments stay, as in torch."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import curvlab
from tests.engine.composed import same

METHODS: dict[str, Mapping[str, Any]] = {
    "adamw": {"weight_decay": 0.1},
    "sgd": {"weight_decay": 0.1, "momentum": 0.9},
    "kfac": {"labels": "data", "refresh": 2, "weight_decay": 0.1},
    "ekfac": {"labels": "data", "refresh": 2},
    "foof": {"refresh": 2},
    "singd": {"refresh": 2, "weight_decay": 0.1},
    "sirf-shampoo": {},
    "shampoo": {},
    "soap": {},
    "kl-shampoo": {},
    "kl-soap": {},
    "muon": {},
}
SEARCHING = ("lbfgs", "hf-gn", "ksd")


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.norm = nn.Linear(4, 6), nn.LayerNorm(6)
        self.heads = nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x: Tensor, head: int = 0) -> Tensor:
        return self.heads[head](torch.tanh(self.norm(self.body(x))))


def data(k: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(k)
    return torch.randn(8, 4, generator=g, dtype=torch.float64), torch.randint(0, 3, (8,), generator=g)


def go(model: nn.Module, opt: torch.optim.Optimizer, k: int, head: int = 0) -> None:
    x, y = data(k)
    opt.zero_grad()
    F.cross_entropy(model(x, head), y).backward()
    opt.step()


def copied(p: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in p.parameters()]


def test_adamw_on_heads_that_take_turns_is_torchs() -> None:
    """Each head's moments, and the number of steps that corrects their bias, are its own."""
    a, b = Heads().double(), Heads().double()
    mine = curvlab.optimizer("adamw", a, lr=1e-2, weight_decay=0.1)
    theirs = torch.optim.AdamW(b.parameters(), lr=1e-2, weight_decay=0.1)
    for k in range(9):
        head = int(k % 3 == 1)
        go(a, mine, k, head)
        go(b, theirs, k, head)
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("why", ["unused", "frozen"])
def test_a_head_without_a_gradient_stays_and_its_state_with_it(name: str, why: str) -> None:
    model = Heads().double()
    opt = curvlab.optimizer(name, model, lr=1e-2, **METHODS[name])
    go(model, opt, 0, 1)
    go(model, opt, 1, 0)
    if why == "frozen":
        model.heads[1].requires_grad_(False)
    before = copied(model.heads[1])
    states = {p: t.clone() for p, t in opt.snapshot()[0].items() if "heads.1" in p}
    assert states
    for k in range(2, 5):
        go(model, opt, k, 0)
    assert all(torch.equal(p, q) for p, q in zip(model.heads[1].parameters(), before, strict=True))
    after = opt.snapshot()[0]
    assert all(torch.equal(after[p], t) for p, t in states.items())


@pytest.mark.parametrize("name", [*METHODS, *SEARCHING])
def test_objectives_leave_what_has_no_gradient_where_it_is(name: str) -> None:
    model = Heads().double()
    knobs = {k: v for k, v in METHODS.get(name, {}).items() if k != "labels"}
    opt = curvlab.optimizer(name, model, **knobs)
    x, y = data(0)
    opt.step(curvlab.objective(model, nn.CrossEntropyLoss(), x, y))
    model.body.requires_grad_(False)
    before = copied(model.body) + copied(model.heads[1])
    moving = copied(model.heads[0])
    for k in range(1, 4):
        opt.step(curvlab.objective(model, nn.CrossEntropyLoss(), *data(k)))
    now = copied(model.body) + copied(model.heads[1])
    assert all(torch.equal(p, q) for p, q in zip(now, before, strict=True))
    assert not any(torch.equal(p, q) for p, q in zip(model.heads[0].parameters(), moving, strict=True))


@pytest.mark.parametrize("name", METHODS)
def test_only_a_bias_frozen_stays_alone(name: str) -> None:
    model = Heads().double()
    opt = curvlab.optimizer(name, model, lr=1e-2, **METHODS[name])
    go(model, opt, 0)
    model.body.bias.requires_grad_(False)
    bias, weight = model.body.bias.detach().clone(), model.body.weight.detach().clone()
    go(model, opt, 1)
    go(model, opt, 2)
    assert torch.equal(model.body.bias, bias)
    assert not torch.equal(model.body.weight, weight)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_without_any_gradient_is_none(name: str) -> None:
    model = Heads().double()
    opt = curvlab.optimizer(name, model, lr=1e-2, **METHODS[name])
    go(model, opt, 0)
    before, steps = copied(model), opt.steps
    opt.zero_grad()
    opt.step()
    assert opt.step(lambda: None) is None
    assert opt.steps == steps
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_a_closure_gives_back_what_it_returns() -> None:
    model = Heads().double()
    opt = curvlab.optimizer("adamw", model)

    def closure() -> float:
        loss = F.cross_entropy(model(data(0)[0]), data(0)[1])
        loss.backward()
        return loss.item()

    value = opt.step(closure)
    assert isinstance(value, float)
    assert opt.last is not None
    assert opt.last.loss == pytest.approx(value)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("by", ["plain", "objective"])
def test_what_is_unfrozen_is_trained_from_then_on(name: str, by: str) -> None:
    model = Heads().double()
    model.body.requires_grad_(False)
    model.norm.requires_grad_(False)
    opt = curvlab.optimizer(name, model, lr=1e-2, **METHODS[name])
    before = copied(model.body) + copied(model.norm)
    for k in range(6):
        if k == 2:
            now = copied(model.body) + copied(model.norm)
            assert all(torch.equal(p, q) for p, q in zip(now, before, strict=True))
            model.requires_grad_(True)
        if by == "plain":
            go(model, opt, k)
        else:
            opt.step(curvlab.objective(model, nn.CrossEntropyLoss(), *data(k)))
    now = copied(model.body) + copied(model.norm)
    assert not any(torch.equal(p, q) for p, q in zip(now, before, strict=True))
    assert all(bool(torch.isfinite(p).all()) for p in now)
    rows = {row.parameter: row.treatment for row in opt.coverage()}
    assert rows["body.weight"] == name
    assert {p for g in opt.param_groups for p in g["params"]} >= set(model.parameters()) - set(
        model.heads[1].parameters()
    )


def by_deepcopy(pair: Any) -> Any:
    return copy.deepcopy(pair)


def by_pickle(pair: Any) -> Any:
    return pickle.loads(pickle.dumps(pair))


def by_state(pair: Any) -> Any:
    model, opt = pair
    twin = Heads().double()
    twin.load_state_dict(model.state_dict())
    name = opt.name
    other = curvlab.optimizer(name, twin, lr=1e-2, seed=9, **METHODS[name])
    other.load_state_dict(copy.deepcopy(opt.state_dict()))
    return twin, other


@pytest.mark.parametrize("how", [by_deepcopy, by_pickle, by_state])
@pytest.mark.parametrize("name", METHODS)
def test_copies_train_on_alike_after_blocks_have_parted(name: str, how: Callable[[Any], Any]) -> None:
    model = Heads().double()
    opt = curvlab.optimizer(name, model, lr=1e-2, **METHODS[name])
    for k in range(3):
        go(model, opt, k, int(k == 1))
    twin, other = how((model, opt))
    assert other.model is twin
    for k in range(3, 7):
        go(model, opt, k, k % 2)
    for k in range(3, 7):
        go(twin, other, k, k % 2)
    assert same(model, twin)


@pytest.mark.parametrize("part", ["bias", "weight"])
@pytest.mark.parametrize("name", ["kfac", "singd", "sirf-shampoo", "adamw"])
def test_a_part_of_a_layer_that_is_unfrozen_makes_it_a_layer_that_resumes(name: str, part: str) -> None:
    model = Heads().double()
    getattr(model.body, part).requires_grad_(False)
    opt = curvlab.optimizer(name, model, lr=1e-2, **METHODS[name])
    for k in range(5):
        if k == 2:
            model.requires_grad_(True)
        go(model, opt, k)
    assert {r.treatment for r in opt.coverage() if r.parameter.startswith("body")} == {name}
    twin, other = by_state((model, opt))
    for k in range(5, 8):
        go(model, opt, k)
    for k in range(5, 8):
        go(twin, other, k)
    assert same(model, twin)


class Experts(nn.Module):
    """The second expert sees its first token in the third batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.experts = nn.Linear(4, 6), nn.ModuleList(nn.Linear(6, 3) for _ in range(2))

    def forward(self, x: Tensor, chosen: int = 0) -> Tensor:
        h = torch.tanh(self.body(x))
        other = h[:0] if chosen == 0 else h[:4]
        return torch.cat((self.experts[1](other), self.experts[0](h[len(other) :])))


@pytest.mark.parametrize("name", ["kfac", "ekfac", "foof", "singd"])
def test_a_layer_that_is_seen_late_takes_no_step_of_the_size_of_one_over_the_damping(name: str) -> None:
    """Its gradient was zero, its factor never observed; the next refresh is far away."""
    knobs: dict[str, Any] = {"labels": "data"} if name in ("kfac", "ekfac") else {}
    knobs["grafting"] = "none"  # which would give the step another length whatever the factors
    model = Experts().double()
    opt = curvlab.optimizer(name, model, lr=1e-2, damping=1e-6, momentum=0.0, refresh=100, **knobs)
    for k in range(2):
        go(model, opt, k, 0)
    before = model.experts[1].weight.detach().clone()
    go(model, opt, 2, 1)
    gradient, moved = model.experts[1].weight.grad, model.experts[1].weight.detach() - before
    assert gradient is not None
    assert 0 < float(moved.norm()) < 10 * 1e-2 * float(gradient.norm())
