"""Jets are the derivatives that autograd finds, one at a time, and that nested forward mode finds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError
from curvlab.pde.derivatives import Differentiator
from curvlab.pde.elementwise import SMOOTH
from curvlab.pde.nested import nested
from curvlab.pde.partials import Derivative, Laplacian
from curvlab.pde.sine import Sine
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from tests.pde.networks import Attention, derivative, networks

#: all partial derivatives of two coordinates up to order 4, and Laplacians, also of coordinates apart
WANTED: Sequence[Derivative] = (
    *(c for k in range(5) for c in itertools.combinations_with_replacement((0, 2), k)),
    (0, 1),
    (0, 1, 2),
    (0, 0, 1, 2),
    Laplacian((0, 1, 2)),
    Laplacian((0, 2)),
    Laplacian((1,)),
)


def require_equal(
    net: Callable[[Any], Any], found: Any, x: Tensor, wanted: Sequence[Derivative], what: str
) -> None:
    """A derivative of order k is a sum of products of k + 1 factors: its largest part is its scale."""
    for each in wanted:
        expected = derivative(net, x, each)
        scale = 1 + float(expected.abs().max())
        assert_close(found[each], expected, dimension=400, scale=scale, what=f"{what}, {each}")


@pytest.mark.parametrize("name", [*SMOOTH, "Sine", "Softplus", "SiLU", "GELU", "Tanh", "Sigmoid"])
def test_every_activation_has_four_derivatives(name: str) -> None:
    torch.manual_seed(0)
    if name == "Sine":
        function: Callable[[Any], Any] = Sine()
    else:
        where: Any = nn if name[0].isupper() else torch if hasattr(torch, name) else F
        function = getattr(where, name)() if where is nn else getattr(where, name)
    inner, outer = nn.Linear(3, 4).double(), nn.Linear(4, 1).double()

    def forward(x: Any) -> Any:
        z = inner(x)
        return outer(function(z * z + 0.5 if name in ("log", "sqrt", "reciprocal") else z))

    net = Wrapped(forward)
    ways, x = Differentiator(net), normal(5, 3, seed=1)
    found, _ = ways(x, WANTED)
    assert ways.reason is None
    require_equal(net, found, x, WANTED, name)


@pytest.mark.parametrize("name", networks())
def test_every_rule_is_that_of_autograd(name: str) -> None:
    net, x = networks()[name], normal(5, 3, seed=2)
    ways = Differentiator(net)
    found, _ = ways(x, WANTED)
    assert ways.reason is None
    require_equal(net, found, x, WANTED, name)
    for each in WANTED[::5]:  # what is asked for beside it changes nothing
        scale = 1 + float(found[each].detach().abs().max())
        assert_close(ways(x, [each])[0][each], found[each], dimension=400, scale=scale)


def test_nested_differentiation_is_that_of_autograd() -> None:
    net, x = networks()["gates"], normal(5, 3, seed=2)
    require_equal(net, nested(net, x, WANTED), x, WANTED, "nested")


def test_a_transform_of_the_outputs_is_differentiated_with_them() -> None:
    def transform(x: Any, N: Any) -> Any:
        return torch.sin(x[:, :1]) + x[:, 2:] * (1 - x[:, 1:2] ** 2) * N

    net, x = networks()["sum"], normal(5, 3, seed=2)
    ways = Differentiator(net, transform)
    found, _ = ways(x, WANTED)
    assert ways.reason is None
    require_equal(lambda x: transform(x, net(x)), found, x, WANTED, "transform")


def test_derivatives_can_be_differentiated_in_the_parameters() -> None:
    net, x = networks()["residual connections"], normal(5, 3, seed=2)
    wanted = [(0, 0, 1), Laplacian((0, 1, 2)), (1,)]
    for found in (Differentiator(net)(x, wanted)[0], nested(net, x, wanted)):
        at = x.clone().requires_grad_()
        loss = sum(t.square().sum() for t in found.values())
        mine = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)
        loss = sum(traced(net(at)[:, k], at, each).square().sum() for each in wanted for k in (0, 1))
        slow = torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True)
        for a, b in zip(mine, slow, strict=True):
            assert_close(a, b, dimension=1000, scale=1 + float(b.abs().max()))


def traced(u: Tensor, x: Tensor, wanted: Derivative) -> Tensor:
    """A derivative of values ``u`` at ``x``, with its graph."""
    if isinstance(wanted, Laplacian):
        return torch.stack([traced(u, x, (k, k)) for k in wanted.coordinates]).sum(0)
    for k in wanted:
        u = torch.autograd.grad(u.sum(), x, create_graph=True)[0][:, k]
    return u


@pytest.mark.parametrize("name", ["gates", "positions"])
def test_every_product_is_heard_with_its_inputs_and_outputs(name: str) -> None:
    net, x = networks()[name], normal(5, 3, seed=2)
    _, heard = Differentiator(net)(x, [(0, 0), (1,)], heard=True)
    layers = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert [id(w) for w, *_ in heard] == [id(layer.weight) for layer in layers]
    for layer, (weight, bias, Z, Y) in zip(layers, heard, strict=True):
        assert weight is layer.weight
        assert bias is layer.bias
        assert Z.shape[:2] == Y.shape[:2] == (4, 5)  # the value, ∂₀, ∂₁ and ∂₀₀
        for channel in range(4):
            expected = Z[channel] @ weight.mT + (layer.bias if channel == 0 else 0)
            assert_close(Y[channel], expected, dimension=10)


class Wrapped(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        """The function."""
        return self.function(x)


class Written(nn.Module):
    """Writes into a tensor, compares, and takes a branch by them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Nothing that jets have rules for."""
        z = torch.tanh(self.first(x))
        h = z.clone()
        h[:, 0] = z[:, 0] * z[:, 1]
        return torch.where(x[:, :1] == 17.0, h, 2.0**h)


def without_rules() -> dict[str, tuple[nn.Module, str]]:
    """Networks that jets have no rule for, with what is missing."""
    torch.manual_seed(0)
    first, last = nn.Linear(3, 4), nn.Linear(4, 2)
    encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, activation="gelu", batch_first=True)
    found = {
        "LayerNorm": (nn.Sequential(first, nn.LayerNorm(4), nn.Tanh(), last), "layer_norm"),
        "BatchNorm": (nn.Sequential(first, nn.BatchNorm1d(4), nn.Tanh(), last), "batch_norm"),
        "attention": (Attention(weights=True), "multi_head_attention"),
        "fused attention": (Attention(weights=False), "multi_head_attention"),
        "an encoder": (nn.Sequential(first, nn.Unflatten(1, (1, 4)), encoder, nn.Flatten(), last), ""),
        "GELU by tanh": (nn.Sequential(first, nn.GELU("tanh"), last), "gelu"),
        "Softplus with β": (nn.Sequential(first, nn.Softplus(2.0), last), "softplus"),
        "writing": (Written(), ""),
    }
    return {name: (net.double().eval(), missing) for name, (net, missing) in found.items()}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", without_rules())
def test_a_network_without_rules_is_differentiated_by_nesting(name: str, grad: bool) -> None:
    """Also where torch would take fused kernels, which have no forward mode."""
    net, missing = without_rules()[name]
    ways, x = Differentiator(net), normal(5, 3, seed=2)
    with torch.set_grad_enabled(grad):
        found, _ = ways(x, [(), (0,), (0, 1), Laplacian((0, 1, 2))])
    assert ways.reason is not None
    assert missing in ways.reason
    require_equal(net, found, x, list(found), name)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("kinked", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.Softsign, nn.Hardtanh])
def test_a_kink_is_refused_where_it_is_differentiated(
    kinked: type[nn.Module], norm: bool, order: int
) -> None:
    """By jets, and by nesting, which would find zeros; once continuously differentiable is enough for one."""
    layers = [nn.Linear(3, 4), *([nn.LayerNorm(4)] if norm else []), kinked(), nn.Linear(4, 1)]
    net, x, wanted = nn.Sequential(*layers).double(), normal(5, 3, seed=2), (0,) * order
    if order == 1 and kinked in (nn.ELU, nn.Softsign):
        require_equal(net, Differentiator(net)(x, [wanted])[0], x, [wanted], "once")
        return
    name = {nn.LeakyReLU: "leaky_relu"}.get(kinked, kinked.__name__.lower())
    with pytest.raises(ConfigError, match=rf"{name} has no (second|continuous first) derivative") as failed:
        Differentiator(net)(x, [wanted])
    assert "nn.Tanh" in str(failed.value.faults[0].hint)
    assert_close(Differentiator(net)(x, [()])[0][()], net(x).detach())


def test_a_kink_of_what_does_not_depend_on_the_coordinates_is_fine() -> None:
    class Positive(nn.Module):
        def __init__(self, norm: nn.Module) -> None:
            super().__init__()
            self.norm, self.scale = norm, nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = torch.sin(self.norm(x * torch.abs(self.scale)))
            return found

    x = normal(5, 3, seed=2)
    for norm in (nn.Identity(), nn.LayerNorm(3)):
        net = Positive(norm).double()
        require_equal(net, Differentiator(net)(x, [(0, 1)])[0], x, [(0, 1)], "abs")


def test_a_solution_that_ignores_the_coordinates_has_derivatives_zero() -> None:
    net, x = nn.Linear(3, 2).double(), normal(5, 3, seed=2)
    found, _ = Differentiator(net, lambda x, N: net.bias.expand(len(x), 2))(x, [(), (0,), Laplacian((0, 1))])
    assert_close(found[()], net.bias.expand(5, 2))
    assert not found[(0,)].any()
    assert not found[Laplacian((0, 1))].any()
