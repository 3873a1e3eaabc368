"""Channels are the derivatives that autograd finds, one at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvlab.errors import ConfigError
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab_pinn.jets import jets, value_channel
from plugins.pinn.tests.networks import ACTIVATIONS, derivatives, net


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("d", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_channels_are_derivatives(activation: type[nn.Module], d: int, bias: bool) -> None:
    network, x, w = net(d, activation, bias=bias), normal(6, d, seed=3), normal(d, seed=4)
    u, first, second = derivatives(lambda x: network(x)[:, 0], x)
    Z = jets(network, x, w)[..., 0]
    assert_close(Z[:, 0], u.detach(), dimension=20)
    assert_close(Z[:, 1:-1], first.detach(), dimension=20)
    assert_close(Z[:, -1], (second @ w).detach(), dimension=60, scale=1.0)
    assert_close(jets(network, x, None)[:, 0, 0], u.detach(), dimension=20)


def test_they_can_be_differentiated_in_the_parameters() -> None:
    network, x, w = net(2), normal(6, 2, seed=3), torch.tensor([1.0, -0.5]).double()
    _, _, second = derivatives(lambda x: network(x)[:, 0], x)
    slow = torch.autograd.grad((second @ w).square().sum(), list(network.parameters()), allow_unused=True)
    fast = torch.autograd.grad(jets(network, x, w)[:, -1, 0].square().sum(), list(network.parameters()))
    for mine, theirs in zip(fast, slow, strict=True):
        assert_close(mine, torch.zeros_like(mine) if theirs is None else theirs, dimension=100, scale=1.0)


def test_who_listens_hears_every_linear_layer() -> None:
    network, x, heard = net(2), normal(6, 2, seed=3), []
    jets(network, x, torch.ones(2).double(), lambda layer, Z, Y: heard.append((layer, Z, Y)))
    assert [layer for layer, _, _ in heard] == [m for m in network.modules() if isinstance(m, nn.Linear)]
    for layer, Z, Y in heard:
        assert Z.shape[:2] == Y.shape[:2] == (6, 4)
        assert_close(Y, Z @ layer.weight.mT + value_channel(Z) * layer.bias, dimension=10)


def test_a_layer_without_a_rule_is_named() -> None:
    with pytest.raises(ConfigError, match="are not known for ReLU") as failed:
        jets(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), torch.zeros(1, 2), torch.ones(2))
    assert "Tanh" in str(failed.value.faults[0].hint)
