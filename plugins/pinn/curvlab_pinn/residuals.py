"""The model that is trained: a network, and by how much it misses an equation and its boundary values."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab_pinn.equations import Equation
from curvlab_pinn.jets import Hear, jets


def as_rows(
    inside: Float[Tensor, "n d"],
    source: Float[Tensor, " n"],
    on: Float[Tensor, "m d"],
    given: Float[Tensor, " m"],
) -> Float[Tensor, "k d+3"]:
    """Points, and what is wanted there, as rows: coordinates, target, weight, 1 inside and 0 on the boundary.

    Interior points come first.  The weight is ``√(k / 2 k_t)`` with k_t points of the same kind, so that the
    mean over all rows of ``(weight · residual)²`` is half the mean of each kind.
    """
    total = len(inside) + len(on)
    kinds = []
    for x, target, kind in ((inside, source, 1.0), (on, given, 0.0)):
        weight = x.new_full((len(x), 1), (total / (2 * max(len(x), 1))) ** 0.5)
        kinds.append(torch.cat([x, target.unsqueeze(1), weight, torch.full_like(weight, kind)], 1))
    return torch.cat(kinds)


class Residuals(nn.Module):
    """``weight · residual`` of every point, ``[n, 1]``: of the equation, or of boundary values.

    The mean of its square is the loss of a PINN, ``1/(2 n_O) Σ (𝓛u − f)² + 1/(2 n_b) Σ (u − g)²``.
    """

    first: Tensor
    second: Tensor

    def __init__(self, net: nn.Module, equation: Equation) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("first", equation.first().to(torch.get_default_dtype()), persistent=False)
        self.register_buffer("second", equation.second().to(torch.get_default_dtype()), persistent=False)

    def forward(self, points: Float[Tensor, "n d+3"]) -> Float[Tensor, "n 1"]:
        """Weighted residuals, interior points first as they came."""
        inside, on = self.split(points)
        both = torch.cat([self.inside(inside), self.on(on)])
        return both.unsqueeze(1) * points[:, -2:-1]

    def split(self, points: Float[Tensor, "n d+3"]) -> tuple[Tensor, Tensor]:
        """The interior points and those on the boundary."""
        count = int(points[:, -1].sum())
        return points[:count], points[count:]

    def inside(self, points: Float[Tensor, "n d+3"], hear: Hear | None = None) -> Float[Tensor, " n"]:
        """``𝓛u − f``."""
        d = len(self.first)
        channels = jets(self.net, points[:, :d], self.second, hear)[..., 0]
        return channels[:, 1 : d + 1] @ self.first - channels[:, d + 1] - points[:, d]

    def on(self, points: Float[Tensor, "n d+3"], hear: Hear | None = None) -> Float[Tensor, " n"]:
        """``u − g``."""
        d = len(self.first)
        return jets(self.net, points[:, :d], None, hear)[:, 0, 0] - points[:, d]

    def u(self, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """The network's values."""
        return jets(self.net, x, None)[:, 0, 0]
