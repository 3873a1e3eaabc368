"""Linear layers, on any leading shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.protocols.reader import LayerReader


@dataclass(frozen=True)
class LinearReader(LayerReader):
    """Reads ``nn.Linear`` on ``[n, *, i]``: axes between the first and the last are shared positions.

    The bias is the last column of the block, and its input is 1 at every position.
    """

    def refuses(self, module: nn.Module) -> str | None:
        if not isinstance(module, nn.Linear):
            return f"{type(module).__name__} has no layer reader"
        if type(module).forward is not nn.Linear.forward:
            return f"{type(module).__name__} overrides Linear.forward"
        return None

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        return ("weight",) if module.bias is None else ("weight", "bias")

    def shape(self, module: nn.Module) -> torch.Size:
        assert isinstance(module, nn.Linear)
        return torch.Size((module.out_features, module.in_features + (module.bias is not None)))

    def axes(self, module: nn.Module, shape: torch.Size) -> tuple[int, ...]:
        return shape[:-1] or (1,)

    def inputs(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n s i"]:
        rows = _rows(x)
        if len(self.parameters(module)) == 1:
            return rows
        return torch.cat((rows, rows.new_ones(*rows.shape[:2], 1)), dim=-1)

    def grads(self, module: nn.Module, g: Tensor) -> Float[Tensor, "n s o"]:
        return _rows(g)

    def row(self, module: nn.Module, x: Tensor, g: Tensor, k: int) -> tuple[Float[Tensor, " i"], Tensor]:
        rows, own = g.reshape(-1, g.shape[-1])[:, k], x.reshape(-1, x.shape[-1])
        return rows @ own, torch.linalg.vector_norm(rows) * torch.linalg.vector_norm(own)


def _rows(x: Tensor) -> Float[Tensor, "n s d"]:
    if x.dim() == 1:  # one example without a batch axis
        return x.view(1, 1, -1)
    return x.reshape(x.shape[0], -1, x.shape[-1])
