"""Weights used beside their layers, in any step; what hides gradients; parameters without one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from curvlab.errors import ConfigError
from curvlab.objectives.evaluation import LayerMismatch
from curvlab.objectives.supervised import objective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import GRADIENT_ONLY, Labels, Needs
from curvlab.testing.reference import jacobian
from tests.objectives.asking import ask, gradients, layers_of, normal, wanting

SQUARED = nn.MSELoss()


class Net(nn.Module):
    """Two layers, and a use of the first one's weight that may be switched on."""

    def __init__(self, *, bias: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.out = nn.Linear(4, 4, bias=bias), nn.Linear(4, 3)
        self.way, self.share = "", 1.0
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        weight, h = self.layer.weight, None
        if self.way != "only":
            h = self.layer(x)
        if self.way in ("beside", "only"):
            more = F.linear(x, weight) * self.share
            h = more if h is None else h + more
        if self.way == "penalty":
            h = h + self.share * weight.square().sum()
        if self.way == "bias":
            h = h * self.layer.bias
        if self.way == "twice":
            h = self.layer(torch.tanh(h))
        if self.way == "hook":
            h = h * 1.0
        return self.out(torch.tanh(h))


def penalized(model: nn.Module, share: float):  # type: ignore[no-untyped-def]
    """A squared error and, with ``share``, the squared gradient of the outputs in the inputs."""

    def criterion(f: Tensor, t: Tensor) -> Tensor:
        value = F.mse_loss(f, t)
        if share:
            x = normal(7, 4, seed=5).requires_grad_()
            (g,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            value = value + share * g.square().sum()
        return value

    return criterion


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def right(blocks: Blocks, seen: Evaluation, model: nn.Module, value: Tensor) -> None:
    for name, g in gradients(model, value).items():
        torch.testing.assert_close(blocks.slots(seen.gradient)[name], g)


NEEDS = wanting(Labels.DATA, factored=True)


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("way", ["beside", "only", "penalty", "bias"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_use_beside_the_layer_is_found_in_the_step_that_begins_it(
    way: str, bias: bool, micro_batch: int | None
) -> None:
    if way == "bias" and not bias:
        return
    model, x, y = Net(bias=bias), normal(7, 4), normal(7, 3, seed=1)
    blocks, asked = layers_of(model), objective(model, SQUARED, x, y, micro_batch=micro_batch)
    with silence():
        for step in range(3):
            right(blocks, ask(asked, NEEDS, blocks, step=step), model, SQUARED(model(x), y))
    model.way = way
    with pytest.warns(LayerMismatch, match='calls of layer "layer" do not explain its gradient') as caught:
        seen = ask(asked, NEEDS, blocks, step=3)
    assert len(caught) == 1
    right(blocks, seen, model, SQUARED(model(x), y))
    assert set(seen.layers[Labels.DATA]) == {"out"}
    with silence():
        right(blocks, ask(asked, NEEDS, blocks, step=4), model, SQUARED(model(x), y))


@pytest.mark.parametrize("way", ["beside", "penalty"])
def test_a_use_whose_share_grows_from_zero_is_found_when_it_counts(way: str) -> None:
    model, x, y = Net(), normal(7, 4), normal(7, 3, seed=1)
    blocks, asked = layers_of(model), objective(model, SQUARED, x, y)
    model.way, model.share = way, 0.0
    with silence():
        ask(asked, NEEDS, blocks, step=0)
    model.share = 0.5
    with pytest.warns(LayerMismatch, match="explain"):
        seen = ask(asked, NEEDS, blocks, step=1)
    right(blocks, seen, model, SQUARED(model(x), y))


def test_a_gradient_penalty_that_begins_later_is_found() -> None:
    model, x, y = Net(), normal(7, 4), normal(7, 3, seed=1)
    blocks = layers_of(model)
    with silence():
        ask(objective(model, penalized(model, 0.0), x, y), NEEDS, blocks, step=0)
    criterion = penalized(model, 0.3)
    with pytest.warns(LayerMismatch, match="explain"):
        seen = ask(objective(model, criterion, x, y), NEEDS, blocks, step=1)
    right(blocks, seen, model, criterion(model(x), y))


@pytest.mark.parametrize("way", ["twice", "hook"])
def test_another_way_of_calling_layers_is_no_use_beside_them(way: str) -> None:
    model, x, y = Net(), normal(7, 4), normal(7, 3, seed=1)
    blocks, asked = layers_of(model), objective(model, SQUARED, x, y)
    with silence():
        ask(asked, NEEDS, blocks, step=0)
        model.way = way
        right(blocks, ask(asked, NEEDS, blocks, step=1), model, SQUARED(model(x), y))
    assert not blocks.untapped


def test_a_known_way_costs_no_backward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y = Net(), normal(7, 4), normal(7, 3, seed=1)
    blocks, asked = layers_of(model), objective(model, SQUARED, x, y)
    ask(asked, NEEDS, blocks, step=0)
    passes, grad = [], torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: passes.append(1) or grad(*a, **k))
    ask(asked, NEEDS, blocks, step=1)
    assert len(passes) == 1


# what hides gradients


class Saves(nn.Module):
    """Checkpoints its first layer."""

    def __init__(self, *, reentrant: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.out, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 3), reentrant
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return self.out(torch.tanh(checkpoint(self.layer, x, use_reentrant=self.reentrant)))


@pytest.mark.parametrize("needs", [GRADIENT_ONLY, NEEDS, Needs(products=1)])
def test_a_reentrant_checkpoint_is_refused_in_words_and_another_is_right(needs: Needs) -> None:
    x, y = normal(7, 4), normal(7, 3, seed=1)
    for step in (0, 3):
        bad = Saves(reentrant=True)
        with pytest.raises(ConfigError, match=r"checkpoint with use_reentrant=True.*\n.*use_reentrant=False"):
            ask(objective(bad, SQUARED, x, y), needs, layers_of(bad), step=step)
    good = Saves(reentrant=False)
    blocks = layers_of(good)
    seen = ask(objective(good, SQUARED, x, y), needs, blocks, step=0)
    right(blocks, seen, good, SQUARED(good(x), y))


def test_a_reentrant_checkpoint_around_frozen_layers_is_refused_too() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.kept = nn.Linear(4, 4), nn.Linear(4, 3).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.kept, self.layer(x), use_reentrant=True)

    model = Frozen().double()
    asked = objective(model, SQUARED, normal(7, 4), normal(7, 3))
    for needs in (GRADIENT_ONLY, NEEDS):
        with pytest.raises(ConfigError, match="use_reentrant=False"):
            ask(asked, needs, layers_of(model))


class Mapped(Net):
    """Calls its layer example by example."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.func.vmap(self.layer)(x))


def test_a_layer_inside_vmap_is_refused_in_words_if_it_must_be_recorded() -> None:
    model, x, y = Mapped(), normal(7, 4), normal(7, 3, seed=1)
    asked, blocks = objective(model, SQUARED, x, y), layers_of(model)
    with pytest.raises(ConfigError, match=r'layer "layer" was called inside torch.func.vmap'):
        ask(asked, NEEDS, blocks)
    right(blocks, ask(asked, GRADIENT_ONLY, blocks, step=0), model, SQUARED(model(x), y))


class Forces(nn.Module):
    """Gives the derivative of an energy, which it makes itself."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(self.net(x).sum(), x, create_graph=True)[0]


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_forward_that_differentiates_has_gradients_trial_losses_and_products(
    micro_batch: int | None,
) -> None:
    model, x, y = Forces(), normal(7, 4), normal(7, 4, seed=1)
    asked, blocks = objective(model, SQUARED, x, y, micro_batch=micro_batch), layers_of(model)
    seen = ask(asked, Needs(products=1, losses=1), blocks, step=0)
    right(blocks, seen, model, SQUARED(model(x), y))
    torch.testing.assert_close(asked.loss(), SQUARED(model(x), y).detach())
    v = blocks.read()
    J = jacobian(model, x, blocks)
    assert seen.ggn is not None
    torch.testing.assert_close((seen.ggn @ v).flat, J.mT @ (J @ v.flat) * 2 / J.shape[0])


# parameters without a gradient


class Branches(nn.Module):
    """One of two branches, and a parameter beside layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.scale = nn.Linear(4, 3), nn.Linear(4, 3), nn.Parameter(torch.ones(3))
        self.take_a = True
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return (self.a if self.take_a else self.b)(x) * self.scale


@pytest.mark.parametrize("needs", [GRADIENT_ONLY, NEEDS, wanting(*Labels)])
@pytest.mark.parametrize("micro_batch", [None, 3])
def test_unused_and_frozen_parameters_are_absent(needs: Needs, micro_batch: int | None) -> None:
    model, x, y = Branches(), normal(7, 4), normal(7, 3, seed=1)
    asked, blocks = objective(model, SQUARED, x, y, micro_batch=micro_batch), layers_of(model)
    seen = ask(asked, needs, blocks, step=0)
    assert seen.absent == {"b.weight", "b.bias"}
    assert seen.restrict(blocks.select(["a"]).layout).absent == seen.absent
    model.scale.requires_grad_(False)
    model.a.weight.requires_grad_(False)
    seen = ask(asked, needs, blocks, step=1)
    assert seen.absent == {"b.weight", "b.bias", "scale", "a.weight"}
    right(blocks, seen, model, SQUARED(model(x), y))
    assert not bool(blocks.slots(seen.gradient)["a.weight"].any())
    model.take_a = False
    assert ask(asked, needs, blocks, step=2).absent == {"a.weight", "a.bias", "scale"}


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_frozen_parameters_are_constants_to_trial_gradients_products_and_variance(
    micro_batch: int | None,
) -> None:
    model, x, y = Branches(), normal(7, 4), normal(7, 3, seed=1)
    asked, blocks = objective(model, SQUARED, x, y, micro_batch=micro_batch), layers_of(model)
    model.a.weight.requires_grad_(False)
    at = {n: p.detach() + 0.1 for n, p in model.named_parameters()}
    _, g = asked.differentiate(at)
    assert not bool(g["a.weight"].any())
    assert bool(g["a.bias"].any())
    seen = ask(asked, Needs(products=1, variance=True), blocks, step=0)
    v = blocks.read()
    k = x.shape[0] * 3
    J = torch.stack([blocks.pack(gradients(model, model(x).flatten()[j])).flat for j in range(k)])
    assert seen.ggn is not None
    torch.testing.assert_close((seen.ggn @ v).flat, J.mT @ (J @ v.flat) * 2 / k)
    each = torch.stack(
        [blocks.pack(gradients(model, F.mse_loss(model(x[k : k + 1]), y[k : k + 1]))).flat for k in range(7)]
    )
    assert seen.variance is not None
    torch.testing.assert_close(seen.variance.total, each.var(0).sum())
