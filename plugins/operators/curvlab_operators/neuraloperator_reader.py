"""The spectral convolutions of the package neuraloperator, read from signals on the grid."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from curvlab.model.readers.affine import of_kind
from curvlab.protocols.pieces import piece_at
from curvlab.protocols.reader import LayerReader
from curvlab_operators.mode_reader import complex_columns, pairs_of_rows

WEIGHT = "weight.tensor"

#: scale of a forward transform on N points, by its norm; that of the inverse is 1/N over it
SCALES = {"forward": -1.0, "ortho": -0.5, "backward": 0.0}


@dataclass(frozen=True)
class NeuralOperatorReader(LayerReader):
    """Reads one mode of ``neuralop``'s ``SpectralConv``, the layer of its ``FNO``; as ``ModeReader`` does.

    The module transforms inside of its ``forward``, so coefficients are computed here: a sum over all points
    for each mode, N (i + o) products an example, instead of a transform.  Its bias is a block of its own,
    without rows.

    On an axis other than the last with an odd number of points N, the module's inverse transform puts
    wave number k at k − 1 (it shifts by (N − 1)/2 twice); rows are of what it computes.  The module computes
    in complex64 whatever it is given, so no ``specimens`` obey laws in float64; its own tests widen it.
    """

    reads_complex: ClassVar[bool] = True

    mode: tuple[int, ...] = ()  #: index into the weight's axes of modes

    def parts(self, module: nn.Module) -> tuple[LayerReader, ...]:
        if self.refuses(module) is not None:
            return (self,)
        modes = _weight(module).shape[2:]
        return tuple(replace(self, mode=mode) for mode in product(*map(range, modes)))

    def refuses(self, module: nn.Module) -> str | None:
        refusal = of_kind(module, _kinds(), "forward")
        return _unread(module) if refusal is None else refusal

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        return (piece_at(WEIGHT, (None, None, *((m, m + 1) for m in self.mode))),)

    def shape(self, module: nn.Module) -> torch.Size:
        i, o = _weight(module).shape[:2]
        return torch.Size((o, 2 * i))

    def given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x: Tensor = args[0] if args else kwargs["x"]
        return x.detach()

    def rows(self, module: nn.Module, x: Any, shape: torch.Size) -> int:
        return 2 * shape[0]

    def inputs(self, module: nn.Module, x: Float[Tensor, "n i *grid"]) -> Float[Tensor, "n 2 i*2"]:
        grid = x.shape[2:]
        power = SCALES[str(module.fft_norm)]
        waves = _waves(self._wave_numbers(module), grid, x) * grid.numel() ** power
        return pairs_of_rows(x.flatten(2) @ waves)

    def grads(self, module: nn.Module, g: Float[Tensor, "n o *grid"], x: Any) -> Float[Tensor, "n 2 o"]:
        grid, (*others, last) = g.shape[2:], self._wave_numbers(module)
        lands = [k + 2 * (n // 2) - n for k, n in zip(others, grid, strict=False)]
        once = last == 0 or 2 * last == grid[-1]  # a wave that is its own conjugate on the last axis
        power = -1.0 - SCALES[str(module.fft_norm)]
        waves = _waves([*lands, last], grid, g) * ((1.0 if once else 2.0) * grid.numel() ** power)
        found: Tensor = g.flatten(2) @ waves
        return found.mT

    def matrix(self, module: nn.Module, name: str, t: Complex[Tensor, "i o *one"]) -> Float[Tensor, "o i*2"]:
        return torch.view_as_real(t.flatten(1).mT).flatten(1)

    def unpacked(self, module: nn.Module, name: str, columns: Tensor) -> Complex[Tensor, "i o *one"]:
        found = complex_columns(columns).mT
        return found.view(*found.shape, *(1 for _ in self.mode))

    def _wave_numbers(self, module: nn.Module) -> list[int]:
        """Those of its mode on each axis: the weight is centered on all but the last."""
        *centered, _ = _weight(module).shape[2:]
        return [m - n // 2 for m, n in zip(self.mode, centered, strict=False)] + [self.mode[-1]]


def _waves(k: Sequence[int], grid: torch.Size, like: Tensor) -> Float[Tensor, "points 2"]:
    """``cos`` and ``−sin`` of 2π k·x at all points of a grid."""
    phase = like.new_zeros(())
    for axis, (wave, length) in enumerate(zip(k, grid, strict=True)):
        # whole turns are taken off before anything is rounded
        turns = torch.arange(length, device=like.device).mul_(wave).remainder_(length)
        along = (2 * math.pi / length) * turns.to(like.dtype)
        phase = phase + along.view(-1, *(1 for _ in grid[axis + 1 :]))
    return torch.stack((phase.cos(), -phase.sin()), -1).view(-1, 2)


def _unread(module: nn.Module) -> str | None:
    """Why a spectral convolution is computed otherwise than this reader reads it, or ``None``."""
    tensor = getattr(module.weight, "tensor", None)
    if not isinstance(tensor, Tensor):
        return f"a spectral convolution with a weight in factors ({type(module.weight).__name__}) is not read"
    settings: dict[str, tuple[Any, Any]] = {
        "complex_data": (module.complex_data, False),
        "separable": (module.separable, False),
        "fno_block_precision": (module.fno_block_precision, "full"),
        "resolution_scaling_factor": (module.resolution_scaling_factor, None),
        "n_modes": (list(module.n_modes), list(module.max_n_modes)),  # type: ignore[arg-type]
    }
    for name, (found, read) in settings.items():
        if found != read:
            return f"a spectral convolution with {name} = {found!r} is not read; expected {read!r}"
    return None


def _weight(module: nn.Module) -> Tensor:
    return module.get_parameter(WEIGHT)


def _kinds() -> tuple[type[nn.Module], ...]:
    """The class, if anything has imported it: a model that holds one has."""
    found = getattr(sys.modules.get("neuralop.layers.spectral_convolution"), "SpectralConv", None)
    return () if found is None else (found,)
