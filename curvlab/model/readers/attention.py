"""``nn.MultiheadAttention``: query, key, value and output projection, a block each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from curvlab.model.readers.affine import of_kind
from curvlab.model.rerun.modules import rerun
from curvlab.protocols.reader import CompositeReader, Projection, Specimens


@dataclass(frozen=True)
class AttentionReader(CompositeReader):
    """Reads ``nn.MultiheadAttention`` with every option, alone or inside ``nn.TransformerEncoderLayer``.

    A packed ``in_proj_weight`` is three blocks, rows of one parameter.  ``bias_k`` and ``bias_v`` are not
    read.
    """

    def refuses(self, module: nn.Module) -> str | None:
        return of_kind(module, (nn.MultiheadAttention,), "forward")

    def projections(self, module: nn.Module) -> tuple[Projection, ...]:
        assert isinstance(module, nn.MultiheadAttention)
        bias = None if module._parameters.get("in_proj_bias") is None else "in_proj_bias"
        out = Projection(
            "out_proj.weight", None if module.out_proj._parameters.get("bias") is None else "out_proj.bias"
        )
        d = module.embed_dim
        rows = [(k * d, (k + 1) * d) for k in range(3)]
        if module._parameters.get("in_proj_weight") is not None:
            return (*(Projection("in_proj_weight", bias, r) for r in rows), out)
        apart = (Projection(f"{name}_proj_weight") for name in ("q", "k", "v"))
        biases = () if bias is None else tuple(Projection(None, bias, r) for r in rows)
        return (*apart, *biases, out)

    def rerun(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return rerun(module, args, kwargs)

    def specimens(self) -> Specimens:
        x = torch.randn(3, 2, 4)
        return [(nn.MultiheadAttention(4, 2, batch_first=first), (x, x, x)) for first in (True, False)]
