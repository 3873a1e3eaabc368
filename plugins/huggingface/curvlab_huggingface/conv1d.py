"""The linear layers of GPT-2, whose weights are stored transposed."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.model.readers.affine import Affine, of_kind, ones
from curvlab.protocols.reader import Specimens, features_last


@dataclass(frozen=True)
class Conv1DReader(Affine):
    """Reads ``Conv1D`` of transformers, ``x W + b`` on ``[n, *, i]``, as a block ``[o, i + 1]``.

    The parameter is ``[i, o]``, the transpose of the block's first columns.
    """

    def refuses(self, module: nn.Module) -> str | None:
        refusal = of_kind(module, _kinds(), "forward")
        return self.refuses_part(module) if refusal is None else refusal

    def shape(self, module: nn.Module) -> torch.Size:
        assert isinstance(module.weight, Tensor)
        i, o = module.weight.shape
        return torch.Size((o, 1 if self.part == "bias" else i + len(self.parameters(module)) - 1))

    def given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x: Tensor = args[0] if args else kwargs["x"]
        return x.detach()

    def axes(self, module: nn.Module, x: Any, shape: torch.Size) -> tuple[int, ...]:
        return shape[:-1] or (1,)

    def inputs(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n s i"]:
        rows = features_last(x)
        return ones(rows, *rows.shape[:2]) if self.part == "bias" else self.with_ones(module, rows)

    def grads(self, module: nn.Module, g: Tensor, x: Any) -> Float[Tensor, "n s o"]:
        return features_last(g)

    def matrix(self, module: nn.Module, name: str, t: Tensor) -> Float[Tensor, "o c"]:
        return t.mT if name == "weight" else t.unsqueeze(1)

    def unpacked(self, module: nn.Module, name: str, columns: Float[Tensor, "o c"]) -> Tensor:
        return columns.mT if name == "weight" else columns[:, 0]

    def specimens(self) -> Specimens:
        shapes = ((5,), (5, 2))
        return [(kind(4, 3), (torch.randn(*s, 3),)) for kind in _kinds() for s in shapes]


def _kinds() -> tuple[type[nn.Module], ...]:
    """The class, if anything has imported it: a model that holds one has."""
    found = getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)
    return () if found is None else (found,)
