"""Spectral convolutions: a product with a matrix for each Fourier mode, on periodic grids of any size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab_operators import modes as kept
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

    Transforms themselves run in float32 on every device, because torch has none in float16 on CPUs, and
    on GPUs only for powers of two; ``half`` rounds what goes in and comes out.  Sums of N points exceed
    float16 where the signal's mean exceeds 65504 / N: use ``stabilizer = "tanh"``, which bounds the signal
    by 1.  A float64 signal stays in float64 in ``full``.  The output has the dtype of the input.
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
        grid, precision = x.shape[2:], in_force(self.precision)
        at = kept.places(self.modes, grid, x.device)
        signal = stabilized(x) if self.stabilizer == "tanh" else x
        if precision == "half":
            signal = signal.half()
        with torch.autocast(x.device.type, enabled=False):
            mixed = self.mixing(_coefficients(signal, at, precision))
            found = _signal(mixed, at, grid)
        return (found.half() if precision == "half" else found).to(x.dtype)

    def extra_repr(self) -> str:
        """Settings, for ``repr``."""
        return f'modes={self.modes}, precision="{self.precision}", stabilizer="{self.stabilizer}"'


def _coefficients(
    x: Float[Tensor, "n i *grid"], at: Tensor, precision: SpectralPrecision
) -> Float[Tensor, "n k i 2"]:
    """Kept coefficients as pairs of reals, in the dtype that the precision mixes them in."""
    axes = tuple(range(2, x.dim()))
    wide = x if x.dtype == torch.float64 else x.float()
    norm = "backward" if precision == "half" else "ortho"  # sums of N points, before they are scaled
    found = torch.fft.rfftn(wide, dim=axes, norm=norm).flatten(2).index_select(2, at)
    pairs = torch.view_as_real(found.permute(0, 2, 1))
    if precision == "full":
        return pairs
    narrow = pairs.half()
    return narrow * x.shape[2:].numel() ** -0.5 if precision == "half" else narrow


def _signal(pairs: Float[Tensor, "n k o 2"], at: Tensor, grid: torch.Size) -> Float[Tensor, "n o *grid"]:
    """The real signal whose kept coefficients these are, in float32 or float64."""
    wide = pairs if pairs.dtype == torch.float64 else pairs.float()
    coefficients = torch.view_as_complex(wide.contiguous()).permute(0, 2, 1)
    half = torch.Size((*grid[:-1], grid[-1] // 2 + 1))
    n, o, _ = coefficients.shape
    all_modes = coefficients.new_zeros(n, o, half.numel()).index_copy(2, at, coefficients)
    axes = tuple(range(2, 2 + len(grid)))
    found: Tensor = torch.fft.irfftn(all_modes.view(n, o, *half), s=grid, dim=axes, norm="ortho")
    return found
