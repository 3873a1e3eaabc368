"""The Fourier neural operator: from functions on a grid to functions on the same grid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab_operators.spectral_convolution import SpectralConvolution, Stabilizer
from curvlab_operators.spectral_precision import SpectralPrecision

#: pointwise linear maps, by the number of axes of the grid
POINTWISE: dict[int, type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]] = {
    1: nn.Conv1d,
    2: nn.Conv2d,
    3: nn.Conv3d,
}


class FourierLayer(nn.Module):
    """``gelu(spectral(x) + pointwise(x))``, the last layer's without gelu."""

    def __init__(self, spectral: SpectralConvolution, pointwise: nn.Module, *, last: bool) -> None:
        super().__init__()
        self.spectral, self.pointwise, self.last = spectral, pointwise, last

    def forward(self, x: Float[Tensor, "n c *grid"]) -> Float[Tensor, "n c *grid"]:
        """The next field of the same width."""
        total: Tensor = self.pointwise(x) + self.spectral(x)
        return total if self.last else F.gelu(total)


class FourierOperator(nn.Module):
    """Lifts to ``width`` channels, applies ``layers`` Fourier layers, and projects; arXiv 2010.08895.

    ``modes``: a number for each axis of the grid, one to three axes.  ``coordinates`` adds a channel for each
    axis, the position (j + ½)/N of each point: leave it out where the operator commutes with translations.
    Cost of a pass: FFTs of ``layers × width`` channels, and products of ``width²`` for each mode and point.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        width: int,
        modes: Sequence[int],
        layers: int = 4,
        coordinates: bool = True,
        precision: SpectralPrecision = "full",
        stabilizer: Stabilizer = "none",
    ) -> None:
        super().__init__()
        if len(modes) not in POINTWISE or min(modes) < 1:
            raise ValueError(f"modes = {list(modes)}: expected one to three numbers of at least 1")
        pointwise = POINTWISE[len(modes)]
        self.coordinates = coordinates
        self.lift = pointwise(inputs + len(modes) * coordinates, width, 1)
        self.layers = nn.ModuleList(
            FourierLayer(
                SpectralConvolution(width, width, modes, precision=precision, stabilizer=stabilizer),
                pointwise(width, width, 1),
                last=k == layers - 1,
            )
            for k in range(layers)
        )
        self.project = nn.Sequential(
            pointwise(width, 2 * width, 1), nn.GELU(), pointwise(2 * width, outputs, 1)
        )

    def forward(self, x: Float[Tensor, "n i *grid"]) -> Float[Tensor, "n o *grid"]:
        """The operator's output on the grid of x."""
        if self.coordinates:
            x = torch.cat((x, _positions(x)), dim=1)
        x = self.lift(x)
        for layer in self.layers:
            x = layer(x)
        found: Tensor = self.project(x)
        return found


def _positions(x: Float[Tensor, "n i *grid"]) -> Float[Tensor, "n d *grid"]:
    """(j + ½)/N on each axis, a channel for each."""
    grid = x.shape[2:]
    axes = [(torch.arange(length, device=x.device, dtype=x.dtype) + 0.5) / length for length in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(x.shape[0], -1, *grid)
