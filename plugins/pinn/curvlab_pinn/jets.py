"""Jets: a network's outputs with derivatives in its inputs, in one forward pass.

The value z of a unit, its derivatives ``d_1 z … d_d z`` and a weighted sum ``D z = Σ_i w_i d_i d_i z`` go
through the layers side by side, as *channels*: a network with weight sharing (specs: arXiv 2405.15603).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError, Fault

#: told of every linear layer: the layer, its input channels and its output channels
Hear = Callable[[nn.Linear, Float[Tensor, "n s i"], Float[Tensor, "n s o"]], None]

#: σ, σ', σ'' at a point
Derivatives = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


def jets(
    net: nn.Module, x: Float[Tensor, "n d"], second: Float[Tensor, " d"] | None, hear: Hear | None = None
) -> Float[Tensor, "n s o"]:
    """Channels of the outputs at x: value, ``d_1 … d_d``, ``Σ_i w_i d_i d_i`` with w = ``second``.

    Without ``second``, the value alone.  A linear layer maps every channel by its weight and adds its bias to
    the value.  An elementwise σ:

        d_i σ(z) = σ'(z) d_i z,    D σ(z) = σ'(z) D z + σ''(z) Σ_i w_i (d_i z)²

    Costs d + 2 forward passes.  Raises ``ConfigError`` for a layer that is neither of the two.
    """
    Z = x.unsqueeze(1)
    if second is not None:
        n, d = x.shape
        directions = torch.eye(d, dtype=x.dtype, device=x.device).expand(n, d, d)
        Z = torch.cat([Z, directions, torch.zeros_like(Z)], 1)
    for layer in layers(net):
        if isinstance(layer, nn.Linear):
            Y = F.linear(Z, layer.weight)
            if layer.bias is not None:
                Y = Y + value_channel(Z) * layer.bias
            if hear is not None:
                hear(layer, Z, Y)
            Z = Y
        else:
            Z = _through(DERIVATIVES[type(layer)], Z, second)
    return Z


def value_channel(Z: Float[Tensor, "n s i"]) -> Float[Tensor, "s 1"]:
    """1 for the value, 0 for derivatives: what the bias is multiplied by."""
    unit = Z.new_zeros(Z.shape[1], 1)
    unit[0] = 1.0
    return unit


def layers(net: nn.Module) -> Iterator[nn.Module]:
    """The layers of nested ``nn.Sequential``s, in order; raises ``ConfigError`` for one without a rule."""
    if isinstance(net, nn.Sequential):
        for inner in net:
            yield from layers(inner)
        return
    if not isinstance(net, nn.Linear) and type(net) not in DERIVATIVES:
        known = ", ".join(sorted(kind.__name__ for kind in DERIVATIVES))
        raise ConfigError(
            Fault(
                f"derivatives with respect to the inputs are not known for {type(net).__name__}",
                hint=f"build the network of nn.Sequential, nn.Linear and {known}",
            )
        )
    yield net


def _through(
    derivatives: Derivatives, Z: Float[Tensor, "n s h"], second: Float[Tensor, " d"] | None
) -> Float[Tensor, "n s h"]:
    value, slope, bend = derivatives(Z[:, :1])
    if second is None:
        return value
    along, whole = Z[:, 1:-1], Z[:, -1:]
    squares = torch.einsum("ndh,d->nh", along.square(), second).unsqueeze(1)
    return torch.cat([value, slope * along, slope * whole + bend * squares], 1)


def _tanh(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = torch.tanh(z)
    slope = 1 - t * t
    return t, slope, -2 * t * slope


def _sigmoid(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sigmoid(z)
    slope = s * (1 - s)
    return s, slope, slope * (1 - 2 * s)


def _softplus(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s, slope, _ = _sigmoid(z)
    return F.softplus(z), s, slope


def _silu(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s, slope, bend = _sigmoid(z)
    return z * s, s + z * slope, 2 * slope + z * bend


class Sine(nn.Module):
    """``sin(z)``, entry by entry."""

    def forward(self, z: Tensor) -> Tensor:
        """The sine."""
        return torch.sin(z)


def _sine(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    s = torch.sin(z)
    return s, torch.cos(z), -s


def _identity(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return z, torch.ones_like(z), torch.zeros_like(z)


#: elementwise layers, in torch's default settings
DERIVATIVES: dict[type[nn.Module], Derivatives] = {
    nn.Identity: _identity,
    nn.SiLU: _silu,
    nn.Sigmoid: _sigmoid,
    nn.Softplus: _softplus,
    nn.Tanh: _tanh,
    Sine: _sine,
}
