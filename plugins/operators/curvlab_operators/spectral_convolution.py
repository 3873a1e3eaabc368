"""Spectral convolutions: a product with a matrix for each Fourier mode, on periodic grids of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab_operators import modes as kept
from curvlab_operators.kept_modes import analysis, synthesis
from curvlab_operators.mode_mixing import ModeMixing
from curvlab_operators.spectral_precision import SpectralPrecision, in_force
from curvlab_operators.stabilizer import stabilized

#: what a signal passes through before its Fourier transform
Stabilizer = Literal["none", "tanh"]


class SpectralConvolution(nn.Module):
    """A convolution on a periodic grid, given by its lowest Fourier modes; Li et al. 2021, arXiv 2010.08895.

    ``modes`` is a number m for each axis: wave numbers |k| < m are kept, and all others are zero in the
    output.  Transforms are scaled by ``N^-½`` on N points, so that a layer does the same on every grid.

    ``precision`` says what is in float16, after arXiv 2307.15034:

    * ``full``: nothing;
    * ``mixed``: the kept coefficients and their products with the weights;
    * ``half``: these; the signal is rounded before its transform, the sums of the transform before they are
      scaled, and the result of the inverse transform.

    Transforms themselves run in float32 on every device, because torch has none in float16 on CPUs;
    ``half`` rounds what goes in and comes out.  Sums of N points exceed float16 where the signal's mean
    exceeds 65504 / N: use ``stabilizer = "tanh"``, which bounds the signal by 1 and so suffices up to 65,504
    points.  A float64 signal stays in float64 in ``full``.  The output has the dtype of the input.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        modes: Sequence[int],
        *,
        precision: SpectralPrecision = "full",
        stabilizer: Stabilizer = "none",
    ) -> None:
        super().__init__()
        self.modes = tuple(modes)
        self.precision: SpectralPrecision = precision
        self.stabilizer: Stabilizer = stabilizer
        self.mixing = ModeMixing(kept.count(modes), inputs, outputs)

    def forward(self, x: Float[Tensor, "n i *grid"]) -> Float[Tensor, "n o *grid"]:
        """The filtered signal; raises ``ValueError`` for a grid that is too coarse for the modes."""
        grid, precision = tuple(x.shape[2:]), in_force(self.precision)
        signal = stabilized(x) if self.stabilizer == "tanh" else x
        with torch.autocast(x.device.type, enabled=False):
            if precision == "half":
                signal = signal.half()
            wide = signal if signal.dtype == torch.float64 else signal.float()
            pairs = _rounded(torch.view_as_real(analysis(wide, self.modes).permute(0, 2, 1)), grid, precision)
            mixed = self.mixing(pairs)
            mixed = mixed if mixed.dtype == torch.float64 else mixed.float()
            coefficients = torch.view_as_complex(mixed.contiguous()).permute(0, 2, 1)
            found = synthesis(coefficients, grid, self.modes)
            found = found.half() if precision == "half" else found
            return found.to(x.dtype)

    def extra_repr(self) -> str:
        """Settings, for ``repr``."""
        return f'modes={self.modes}, precision="{self.precision}", stabilizer="{self.stabilizer}"'


def _rounded(
    pairs: Float[Tensor, "n k i 2"], grid: Sequence[int], precision: SpectralPrecision
) -> Float[Tensor, "n k i 2"]:
    """Coefficients in the dtype that the precision mixes them in."""
    if precision == "full":
        return pairs
    if precision == "mixed":
        return pairs.half()
    root = math.sqrt(math.prod(grid))
    return (pairs * root).half() * (1 / root)  # a transform in float16 rounds its sums before it scales them
