"""Bilinear layers: linear in the products of their two inputs' entries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.model.readers.affine import Affine, of_kind, ones
from curvlab.protocols.reader import Specimens, features_last


@dataclass(frozen=True)
class BilinearReader(Affine):
    """Reads ``nn.Bilinear`` ``[o, i, j]`` as a block ``[o, i·j]`` on the outer products of the two inputs.

    ``inputs`` costs ``i·j`` scalars a row.
    """

    def refuses(self, module: nn.Module) -> str | None:
        refusal = of_kind(module, (nn.Bilinear,), "forward")
        return self.refuses_part(module) if refusal is None else refusal

    def shape(self, module: nn.Module) -> torch.Size:
        assert isinstance(module, nn.Bilinear)
        o, i, j = module.weight.shape
        return torch.Size((o, 1 if self.part == "bias" else i * j + len(self.parameters(module)) - 1))

    def given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        named = dict(zip(("input1", "input2"), args, strict=False)) | kwargs
        return named["input1"].detach(), named["input2"].detach()

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        return shape[:-1] or (1,)

    def inputs(self, module: nn.Module, x: Any) -> Float[Tensor, "n s i"]:
        first, second = map(features_last, x)
        if self.part == "bias":
            return ones(first, *first.shape[:2])
        rows = (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(2)
        return self.with_ones(module, rows)

    def grads(self, module: nn.Module, g: Tensor, x: Any) -> Float[Tensor, "n s o"]:
        return features_last(g)

    def specimens(self) -> Specimens:
        return [(nn.Bilinear(3, 2, 4), (torch.randn(*s, 3), torch.randn(*s, 2))) for s in ((5,), (5, 2))]
