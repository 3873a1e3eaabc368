"""Networks of every kind that jets have rules for, and derivatives by plain autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.objectives.products import unfused_attention
from curvlab.pde.partials import Derivative, Laplacian
from curvlab.pde.periodic import Periodic


def derivative(f: Callable[[Tensor], Tensor], x: Tensor, wanted: Derivative) -> Tensor:
    """One derivative ``[n, q]`` of a function of points, by reverse mode in reverse mode."""
    if isinstance(wanted, Laplacian):
        return torch.stack([derivative(f, x, (k, k)) for k in wanted.coordinates]).sum(0)
    x = x.detach().requires_grad_()
    found = []
    with unfused_attention(), torch.enable_grad():
        values = f(x)
    for column in values.unbind(1):
        for k in wanted:
            (g,) = torch.autograd.grad(column.sum(), x, create_graph=True, materialize_grads=True)
            column = g[:, k]
        found.append(column.detach())
    return torch.stack(found, 1)


class Net(nn.Module):
    """A function of the outputs of linear layers, and of the points."""

    def __init__(self, body: Callable[[Any, Any], Any], widths: tuple[int, int, int] = (3, 4, 2)) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(*widths[:2]), nn.Linear(*widths[1:])
        self.body = body

    def forward(self, x: Tensor) -> Any:
        """``outer(body(inner(x), x))``."""
        return self.outer(self.body(self.inner(x), x))


class Gated(nn.Module):
    """The modified MLP of Wang, Teng and Perdikaris: two features that every layer mixes."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.u, self.v = nn.Linear(3, 4), nn.Linear(3, 4)
        self.layers = nn.ModuleList([nn.Linear(3, 4), nn.Linear(4, 4)])
        self.out = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Gates between two features."""
        U, V, H = torch.tanh(self.u(x)), torch.tanh(self.v(x)), x
        for layer in self.layers:
            Z = torch.sigmoid(layer(H))
            H = (1 - Z) * U + Z * V
        found: Tensor = self.out(H)
        return found


class Fourier(nn.Module):
    """Random Fourier features before an MLP, with a residual connection."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(3, 2))
        self.inner, self.outer = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        """``[cos Bx, sin Bx]``."""
        angle = 2 * math.pi * x @ self.frequencies
        h = torch.cat([torch.cos(angle), torch.sin(angle)], -1)
        found: Tensor = self.outer(h + F.silu(self.inner(h)))
        return found


class Positions(nn.Module):
    """A layer that every coordinate of a point goes through."""

    def __init__(self, outputs: int = 2) -> None:
        super().__init__()
        self.each, self.out = nn.Linear(1, 4), nn.Linear(12, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Three positions a point."""
        found: Tensor = self.out(torch.tanh(self.each(x.unsqueeze(-1))).flatten(1))
        return found


class Attention(nn.Module):
    """The coordinates of a point attend to each other."""

    def __init__(self, outputs: int = 2, *, weights: bool = True) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(1, 4), nn.Linear(4, outputs)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.weights = weights

    def forward(self, x: Tensor) -> Tensor:
        """Self-attention over coordinates."""
        h = self.embed(x.unsqueeze(-1))
        found: Tensor = self.out(self.attention(h, h, h, need_weights=self.weights)[0].sum(1))
        return found


class Shared(nn.Module):
    """A layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layer, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The same layer at two depths."""
        h = torch.tanh(self.first(x))
        for _ in range(2):
            h = h + torch.sin(self.layer(h))
        found: Tensor = self.out(h)
        return found


#: what is done to the features h [n, 4] of points x [n, 3]
BODIES: Mapping[str, Callable[[Any, Any], Any]] = {
    "sums": lambda h, x: h + 1 + torch.sub(2.0 - h, x[:, :1], alpha=3) + torch.add(h, h * h, alpha=0.5),
    "a wider constant": lambda h, x: (h[:, :1] + torch.ones(4).double()) * torch.arange(4.0).double() + h,
    "products": lambda h, x: h * torch.sin(h) * x[:, 1:2] * 3,
    "quotients": lambda h, x: torch.tanh(h) / (2 + x[:, :1].square()) + 1.0 / (h * h + 1) - h / 3,
    "powers": lambda h, x: h**2 + (h * h + 1) ** 1.5 - torch.pow(h, 3) + h**1 + h**0,
    "negative powers": lambda h, x: -((h * h + 1) ** -0.5) + torch.sqrt(h * h + 2) + (h**2 + 1).reciprocal(),
    "logarithms": lambda h, x: torch.log(torch.exp(h) + h.square() + 0.1),
    "cat": lambda h, x: torch.cat([h[:, :2].cos(), x[:, :1], torch.ones_like(h.Z[0, :, :1])
                                   if hasattr(h, "Z") else torch.ones_like(h[:, :1])], 1).sin(),
    "stack": lambda h, x: torch.stack([h.tanh(), h.sin() * h], -1).sum(-1),
    "slices": lambda h, x: torch.cat([h[:, 2:], h[:, [1]], h[..., :1]], dim=-1).tanh() * h[:, 0].unsqueeze(1),
    "reshape": lambda h, x: (h.reshape(-1, 2, 2).transpose(1, 2) * x[:, None, :2]).contiguous().view(-1, 4),
    "transpose": lambda h, x: torch.flatten(torch.transpose(h.view(len(h), 2, 2).sin(), -1, -2), start_dim=1),
    "flatten": lambda h, x: h.reshape(len(h), 2, 2).sin().flatten(1).squeeze(),
    "sum": lambda h, x: torch.sin(h.sum(1, keepdim=True) + h.sum(-1, True)) * h,
    "mean": lambda h, x: h * torch.exp(-h.square().mean(dim=1, keepdim=True)) + x.sum((1,), keepdim=True),
    "parts": lambda h, x: torch.cat([a * b for a, b in [h.chunk(2, 1), torch.split(h, 2, dim=1)]], 1).sin(),
    "unbind": lambda h, x: torch.stack([c * c.cos() for c in h.unbind(1)], 1) - x.unbind(1)[0][:, None],
    "residual connections": lambda h, x: h + F.gelu(h) + F.softplus(x[:, :1]),
    "matrices": lambda h, x: torch.sin(h @ torch.eye(4).double().roll(1, 0)) * h.contiguous().to(h.dtype),
}  # fmt: skip


def networks() -> Mapping[str, nn.Module]:
    """Each in float64, from three coordinates to two outputs."""
    torch.manual_seed(0)
    found: dict[str, nn.Module] = {name: Net(body) for name, body in BODIES.items()}
    features = Periodic({1: 1.5}, harmonics=2)
    found |= {"gates": Gated(), "Fourier features": Fourier(), "positions": Positions()}
    found["periodic"] = nn.Sequential(
        features, nn.Linear(features.width(3), 4), nn.Tanh(), nn.Linear(4, 2, bias=False)
    )
    return {name: net.double() for name, net in found.items()}
