"""Second derivatives of normalization by forward mode are those of reverse mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp

from curvlab.objectives.norms import ComposedNorms
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal

NORMS = {
    "layer": lambda: nn.LayerNorm(4),
    "two axes": lambda: nn.LayerNorm((3, 4), eps=1e-3),
    "plain": lambda: nn.LayerNorm(4, elementwise_affine=False),
    "instance": lambda: nn.InstanceNorm1d(3, affine=True),
    "instance, tracked": lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True).eval(),
    "group": lambda: nn.GroupNorm(1, 3),
    "root mean square": lambda: nn.RMSNorm(4),
}


@pytest.mark.parametrize("name", NORMS)
def test_second_derivatives_of_norms(name: str) -> None:
    torch.manual_seed(0)
    net = NORMS[name]().double()
    for p in net.parameters():
        nn.init.normal_(p)
    x, v = normal(5, 3, 4, seed=0), normal(5, 3, 4, seed=1)

    def along(s: Tensor) -> Tensor:
        found: Tensor = net(x + s * v)
        return found

    def slope(s: Tensor) -> Tensor:
        found: Tensor = jvp(along, (s,), (torch.ones_like(s),))[1]
        return found

    zero = x.new_zeros(())
    with ComposedNorms():
        assert_close(net(x), net.forward(x), dimension=20)
        second = jvp(slope, (zero,), (torch.ones_like(zero),))[1]
    assert_close(net(x), along(zero))
    expected = torch.autograd.functional.jacobian(
        lambda s: torch.autograd.functional.jacobian(along, s, create_graph=True), zero
    )
    assert_close(second, expected, dimension=100)
