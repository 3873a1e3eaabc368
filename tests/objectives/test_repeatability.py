"""A layer that nobody can repeat is found out in the first step, and named."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from curvlab.errors import Unrepeatable
from curvlab.objectives.supervised import objective
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from curvlab.testing.asserts import assert_self_adjoint
from tests.objectives.asking import ask, layers_of, normal

PRODUCTS = Needs(products=2)


class Noise(nn.Module):
    """Adds noise from a generator that is not torch's global one."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.own = kind, torch.Generator().manual_seed(0)
        self.numpy = np.random.default_rng(0)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        noise = {
            "numpy": lambda: float(self.numpy.standard_normal()),
            "python": random.random,
            "own": lambda: torch.randn(x.shape, dtype=x.dtype, generator=self.own),
            "counter": lambda: 0.1 * self.calls,
        }[self.kind]
        return x + noise()


class Between(nn.Module):
    """Adds noise in its own code, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) + random.random())


def asked(*layers: nn.Module, micro_batch: int | None = None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), *layers, nn.Tanh(), nn.Linear(4, 3)).double()
    x, y = normal(7, 4), torch.arange(7) % 3
    return objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch), layers_of(model)


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("kind", ["numpy", "python", "own", "counter"])
def test_a_layer_that_cannot_be_repeated_is_named(kind: str, micro_batch: int | None) -> None:
    ours, blocks = asked(nn.Dropout(0.5), Noise(kind), nn.Linear(4, 4), micro_batch=micro_batch)
    with pytest.raises(Unrepeatable, match=r'layer "2" \(Noise\).*(?s:.*)torch\'s global generators'):
        ask(ours, PRODUCTS, blocks, step=0)


def test_noise_between_layers_is_laid_to_the_module_whose_code_makes_it() -> None:
    ours, blocks = asked(Between())
    with pytest.raises(Unrepeatable, match=r'layer "1" \(Between\)'):
        ask(ours, PRODUCTS, blocks, step=0)


def test_a_criterion_that_cannot_be_repeated_is_named() -> None:
    def jittered(outputs: Tensor, targets: Tensor) -> Tensor:
        return (outputs - targets).square().mean() * (1.0 + random.random())

    model = nn.Linear(4, 3).double()
    ours = objective(model, jittered, normal(7, 4), normal(7, 3, seed=1))
    with pytest.raises(Unrepeatable, match="the criterion.*jittered"):
        ask(ours, PRODUCTS, layers_of(model), step=0)


def test_only_the_first_step_that_uses_products_pays_for_the_look() -> None:
    noise = Noise("own")
    ours, blocks = asked(noise)
    ask(ours, GRADIENT_ONLY, blocks, step=0)
    assert noise.calls == 1
    ask(ours, PRODUCTS, blocks, step=1)
    assert noise.calls == 2
    quiet, blocks = asked(calls := Noise("own"))
    calls.forward = lambda x: x  # type: ignore[method-assign]
    ask(quiet, PRODUCTS, blocks, step=0)


@pytest.mark.parametrize("micro_batch", [None, 4])
def test_dropout_and_batch_norm_are_frozen_within_a_step(micro_batch: int | None) -> None:
    norm = nn.BatchNorm1d(4)
    ours, blocks = asked(nn.Dropout(0.5), norm, micro_batch=micro_batch)
    seen = ask(ours, PRODUCTS, blocks, step=0)
    assert seen.ggn is not None
    before = {n: b.clone() for n, b in norm.named_buffers()}
    v = seen.gradient.clone()
    first = seen.ggn @ v
    torch.rand(5)  # somebody else draws in between
    assert torch.equal((seen.ggn @ v).flat, first.flat)
    assert_self_adjoint(seen.ggn, seen.gradient, psd=True)
    assert all(torch.equal(b, before[n]) for n, b in norm.named_buffers())


def test_the_look_leaves_random_numbers_and_buffers_to_the_gradients_pass() -> None:
    found = []
    for needs in (GRADIENT_ONLY, PRODUCTS):
        ours, blocks = asked(nn.Dropout(0.5), nn.BatchNorm1d(4))
        seen = ask(ours, needs, blocks, step=0)
        found.append((seen.loss, torch.get_rng_state(), *(b.clone() for b in ours.model.buffers())))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_what_is_not_finite_twice_is_no_evidence() -> None:
    ours, blocks = asked()
    ours.gradient_sample[0][0, 0] = torch.nan
    assert bool(ask(ours, PRODUCTS, blocks, step=0).loss.isnan())
