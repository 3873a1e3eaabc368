"""Layers that spread a position over several, read as transposed convolutions are."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.model.readers.affine import of_kind
from curvlab.protocols.reader import LayerReader, Specimens
from curvlab_spread._example import Spreading


@dataclass(frozen=True)
class Spread(LayerReader):
    """The weight ``[i, o, k]`` as a block ``[o, i k]``: output s k + j reads x[s] at place j, and zeros."""

    def refuses(self, module: nn.Module) -> str | None:
        return of_kind(module, (Spreading,), "forward")

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        return ("weight",)

    def shape(self, module: nn.Module) -> torch.Size:
        return self.matrix(module, "weight", module.get_parameter("weight")).shape

    def inputs(self, module: nn.Module, x: Tensor) -> Tensor:
        places = torch.eye(module.get_parameter("weight").shape[2]).to(x)
        return torch.einsum("nsi,jk->nsjik", x, places).flatten(3).flatten(1, 2)

    def grads(self, module: nn.Module, g: Tensor, x: Any) -> Tensor:
        return g

    def matrix(self, module: nn.Module, name: str, t: Tensor) -> Tensor:
        return t.transpose(0, 1).flatten(1)

    def unpacked(self, module: nn.Module, name: str, columns: Tensor) -> Tensor:
        i, o, k = module.get_parameter("weight").shape
        return columns.view(o, i, k).transpose(0, 1)

    def specimens(self) -> Specimens:
        return [(Spreading(3, 4, 2), (torch.randn(n, s, 3),)) for n, s in ((5, 1), (5, 2))]
