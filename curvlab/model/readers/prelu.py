"""The slopes of a PReLU, a block ``[c, 1]``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.model.readers.affine import channels_first, of_kind, ones
from curvlab.protocols.reader import LayerReader, Specimens


@dataclass(frozen=True)
class PReLUReader(LayerReader):
    """Reads ``nn.PReLU``: rows are output gradients times the negative part of the input.

    A slope for all channels has a position for each of an example's numbers.
    """

    def refuses(self, module: nn.Module) -> str | None:
        return of_kind(module, (nn.PReLU,), "forward")

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        return ("weight",)

    def shape(self, module: nn.Module) -> torch.Size:
        return torch.Size((_slopes(module), 1))

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        return shape[:1] or (1,)

    def inputs(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n s 1"]:
        rows = self._rows(module, x)
        return ones(rows, *rows.shape[:2])

    def grads(self, module: nn.Module, g: Tensor, x: Tensor) -> Float[Tensor, "n s c"]:
        return self._rows(module, g * x.clamp(max=0.0))

    def _rows(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n s c"]:
        x = x.view(1) if x.dim() == 0 else x
        if _slopes(module) == 1:
            return x.reshape(len(x), -1, 1)
        return channels_first(x)

    def specimens(self) -> Specimens:
        return [(nn.PReLU(), (torch.randn(5, 3, 2),)), (nn.PReLU(3), (torch.randn(5, 3),))]


def _slopes(module: nn.Module) -> int:
    assert isinstance(module, nn.PReLU)
    return module.num_parameters
