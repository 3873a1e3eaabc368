"""The linear layers of torch_geometric, which are no ``nn.Linear``."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.model.readers.affine import of_kind
from curvlab.model.readers.linear import LinearReader
from curvlab.protocols.reader import Specimens


@dataclass(frozen=True)
class GraphLinearReader(LinearReader):
    """Reads ``torch_geometric.nn.Linear`` on ``[n, *, i]``; in a graph network, n counts nodes."""

    def refuses(self, module: nn.Module) -> str | None:
        refusal = of_kind(module, _kinds(), "forward")
        return self.refuses_part(module) if refusal is None else refusal

    def shape(self, module: nn.Module) -> torch.Size:
        assert isinstance(module.weight, Tensor)
        o, i = module.weight.shape
        return torch.Size((o, 1 if self.part == "bias" else i + len(self.parameters(module)) - 1))

    def given(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x: Tensor = args[0] if args else kwargs["x"]
        return x.detach()

    def specimens(self) -> Specimens:
        shapes = ((5,), (5, 2))
        return [(kind(3, 4), (torch.randn(*s, 3),)) for kind in _kinds() for s in shapes]


def _kinds() -> tuple[type[nn.Module], ...]:
    """The class, if anything has imported it: a model that holds one has."""
    found = getattr(sys.modules.get("torch_geometric.nn.dense.linear"), "Linear", None)
    return () if found is None else (found,)
