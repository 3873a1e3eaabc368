"""Layers with a weight and a bias, read as one block, or apart where only one of the two can be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.protocols.reader import LayerReader


@dataclass(frozen=True)
class Affine(LayerReader):
    """A linear map with a bias as its last column, whose input is 1 at every position.

    ``part`` is the weight alone or the bias alone where the other is frozen, or shared with other layers.
    """

    part: Literal["whole", "weight", "bias"] = "whole"

    def parts(self, module: nn.Module) -> tuple[LayerReader, ...]:
        return (self, replace(self, part="weight"), replace(self, part="bias"))

    def parameters(self, module: nn.Module) -> tuple[str, ...]:
        if self.part != "whole":
            return (self.part,)
        return ("weight",) if module.bias is None else ("weight", "bias")

    def refuses_part(self, module: nn.Module) -> str | None:
        """Why a layer of the right kind has no such part."""
        return "the layer has no bias" if self.part == "bias" and module.bias is None else None

    def with_ones(self, module: nn.Module, rows: Float[Tensor, "n r i"]) -> Float[Tensor, "n r I"]:
        """Rows of inputs with the bias column, if this part has one."""
        if len(self.parameters(module)) == 1:
            return rows
        return torch.cat((rows, rows.new_ones(*rows.shape[:2], 1)), dim=-1)


def of_kind(module: nn.Module, kinds: Iterable[type[nn.Module]], *methods: str) -> str | None:
    """``""`` if a module has none of these kinds, why its class cannot be read as one, or ``None``.

    A subclass that overrides one of ``methods`` computes something else.
    """
    kind = next((kind for kind in kinds if isinstance(module, kind)), None)
    if kind is None:
        return ""
    for method in methods:
        if getattr(type(module), method) is not getattr(kind, method):
            return f"{type(module).__name__} overrides {kind.__name__}.{method}"
    return None


def ones(like: Tensor, n: int, s: int) -> Float[Tensor, "n s 1"]:
    """The input of a bias at every position; a view of a single number."""
    return like.new_ones(1, 1, 1).expand(n, s, 1)


def channels_first(x: Tensor) -> Float[Tensor, "n s c"]:
    """``[n, c, *]`` as rows, positions in order; a view."""
    return x.flatten(2).mT if x.dim() > 2 else x.unsqueeze(1)
