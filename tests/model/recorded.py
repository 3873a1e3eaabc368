"""The law of a capture: what it recorded, with the gradients of outputs, makes each parameter's gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from curvlab.model.parameter_use import ParameterUse
from curvlab.model.taps import arrival


def gradient_of(use: ParameterUse, g: Tensor) -> Tensor:
    """What a use adds to its parameter's gradient, by what the record says."""
    total = torch.zeros_like(use.part.parameter)
    mine = total[use.part.rows]
    g = g.reshape(-1, g.shape[-1])
    if use.kind == "lookup":
        assert use.x is not None
        index = use.x.flatten()
        kept = torch.ones_like(index, dtype=torch.bool) if use.padding is None else index != use.padding
        mine.index_add_(0, index[kept], g[kept])
    elif use.kind == "shift":
        mine += g.sum(0)
    else:
        assert use.x is not None
        x = use.x.reshape(-1, use.x.shape[-1])
        made = {"linear": (g.mT, x), "transposed linear": (x.mT, g)}
        mine += (g * x).sum(0) if use.kind == "scale" else torch.mm(*made[use.kind])
    return total


@dataclass
class Recorded:
    """Uses, and where the gradients of their outputs will arrive."""

    uses: list[ParameterUse] = field(default_factory=list)
    edges: list[GradientEdge] = field(default_factory=list)

    def add(self, use: ParameterUse) -> None:
        """The callback of a capture."""
        self.uses.append(use)
        self.edges.append(get_gradient_edge(arrival(use.output)))

    def assert_gradients(self, loss: Tensor, parameters: Sequence[Tensor]) -> None:
        """Of all these parameters, and of each the whole gradient."""
        true = torch.autograd.grad(loss, parameters, retain_graph=True)
        arrived = torch.autograd.grad(loss, self.edges)
        mine = {id(p): torch.zeros_like(p) for p in parameters}
        for use, g in zip(self.uses, arrived, strict=True):
            g = g.reshape(use.output.shape)
            mine[id(use.part.parameter)] += gradient_of(use, g)
            if use.bias is not None:
                mine[id(use.bias.parameter)][use.bias.rows] += g.reshape(-1, g.shape[-1]).sum(0)
        for p, t in zip(parameters, true, strict=True):
            torch.testing.assert_close(mine[id(p)], t)
