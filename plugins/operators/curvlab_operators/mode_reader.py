"""Readers of spectral weights: each mode's complex matrix is a linear map of pairs of reals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from curvlab.model.readers.affine import of_kind
from curvlab.protocols.pieces import piece
from curvlab.protocols.reader import LayerReader, Specimens
from curvlab_operators.mode_mixing import ModeMixing


@dataclass(frozen=True)
class ModeReader(LayerReader):
    """Reads one mode of ``ModeMixing``; a module has a block for each of its modes.

    The complex matrix ``W = A + iB``, ``[o, i]``, is the block ``[o, 2i]`` of pairs (A, B).  An example uses
    it at two positions, whose outputs are the real part and the imaginary part of ``W(u + iv)``:

        Re = [A B] (u, −v),        Im = [A B] (v, u).

    So the factor of inputs is the real form of the Hermitian matrix ``E[x xᴴ]``, with all its phases.  The
    factor of output gradients is the real part of ``E[g gᴴ]``, the phases between outputs left out.
    Both rows cost 4 i + 2 o numbers an example.
    """

    reads_complex: ClassVar[bool] = True

    mode: int = 0  #: which of the module's modes

    def parts(self, module: nn.Module) -> tuple[LayerReader, ...]:
        if self.refuses(module) is not None:
            return (self,)
        return tuple(replace(self, mode=k) for k in range(_mixing(module).modes))

    def refuses(self, module: nn.Module) -> str | None:
        return of_kind(module, (ModeMixing,), "forward")

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        return (piece("weight", self.mode, self.mode + 1),)

    def shape(self, module: nn.Module) -> torch.Size:
        return torch.Size((_mixing(module).outputs, 2 * _mixing(module).inputs))

    def given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x: Tensor = args[0] if args else kwargs["x"]
        return x.detach()[:, self.mode]

    def rows(self, module: nn.Module, x: Any, shape: torch.Size) -> int:
        return 2 * shape[0]

    def inputs(self, module: nn.Module, x: Float[Tensor, "n i 2"]) -> Float[Tensor, "n 2 i*2"]:
        return pairs_of_rows(x)

    def grads(self, module: nn.Module, g: Float[Tensor, "n k o 2"], x: Any) -> Float[Tensor, "n 2 o"]:
        return g[:, self.mode].mT

    def matrix(self, module: nn.Module, name: str, t: Complex[Tensor, "1 o i"]) -> Float[Tensor, "o i*2"]:
        return torch.view_as_real(t[0]).flatten(1)

    def unpacked(self, module: nn.Module, name: str, columns: Tensor) -> Complex[Tensor, "1 o i"]:
        return complex_columns(columns).unsqueeze(0)

    def specimens(self) -> Specimens:
        for n in (3, 1):
            yield ModeMixing(3, 2, 4), (torch.randn(n, 3, 2, 2),)


def pairs_of_rows(x: Float[Tensor, "n i 2"]) -> Float[Tensor, "n 2 i*2"]:
    """The rows (u, −v) and (v, u) of inputs ``u + iv``: products with (A, B) are real and imaginary part."""
    u, v = x.unbind(-1)
    return torch.stack((torch.stack((u, -v), -1), torch.stack((v, u), -1)), dim=1).flatten(2)


def complex_columns(columns: Float[Tensor, "o i*2"]) -> Complex[Tensor, "o i"]:
    """Columns of a block as the complex matrix whose parts they are; a view."""
    return torch.view_as_complex(columns.view(columns.shape[0], -1, 2))


def _mixing(module: nn.Module) -> ModeMixing:
    assert isinstance(module, ModeMixing)
    return module
