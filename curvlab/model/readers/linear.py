"""Linear layers, on any leading shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.model.readers.affine import Affine, of_kind, ones
from curvlab.protocols.reader import Specimens, features_last


@dataclass(frozen=True)
class LinearReader(Affine):
    """Reads ``nn.Linear`` on ``[n, *, i]``: axes between the first and the last are shared positions."""

    def refuses(self, module: nn.Module) -> str | None:
        refusal = of_kind(module, (nn.Linear,), "forward")
        return self.refuses_part(module) if refusal is None else refusal

    def shape(self, module: nn.Module) -> torch.Size:
        assert isinstance(module, nn.Linear)
        if self.part == "bias":
            return torch.Size((module.out_features, 1))
        return torch.Size((module.out_features, module.in_features + len(self.parameters(module)) - 1))

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        return shape[:-1] or (1,)

    def inputs(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n s i"]:
        if self.part == "bias":
            rows = x.shape[:-1].numel()
            n = x.shape[0] if x.dim() > 1 else 1
            return ones(x, n, rows // n if n else 0)
        return self.with_ones(module, features_last(x))

    def grads(self, module: nn.Module, g: Tensor, x: Any) -> Float[Tensor, "n s o"]:
        return features_last(g)

    def row(self, module: nn.Module, x: Tensor, g: Tensor, k: int) -> tuple[Float[Tensor, " i"], Tensor]:
        if self.part == "bias":
            return super().row(module, x, g, k)
        rows, own = g.reshape(-1, g.shape[-1])[:, k], x.reshape(-1, x.shape[-1])
        return rows @ own, torch.linalg.vector_norm(rows) * torch.linalg.vector_norm(own)

    def specimens(self) -> Specimens:
        return [(nn.Linear(3, 4), (torch.randn(*s, 3),)) for s in ((5,), (5, 2))]
