"""Rows of a layer's call in the dtype they were captured in; under autocast it is not the parameters'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from curvlab.linalg.lookups import AnyRows
from curvlab.protocols.reader import LayerReader, as_dtype


def input_rows(reader: LayerReader, module: nn.Module, x: Any, dtype: torch.dtype) -> AnyRows:
    """What a layer read, as rows ``[n, r, i]``; of ``dtype`` where it read no floating-point tensor."""
    return reader.inputs(module, x).to(_dtype_of(x) or dtype)


def gradient_rows(reader: LayerReader, module: nn.Module, g: Tensor, x: Any) -> Tensor:
    """A gradient of its output, as rows ``[n, s, o]``."""
    both = torch.promote_types(g.dtype, _dtype_of(x) or g.dtype)
    return reader.grads(module, g.to(both), as_dtype(x, both)).to(g.dtype)


def _dtype_of(x: Any) -> torch.dtype | None:
    """That of the first floating-point tensor in what a call read."""
    if isinstance(x, tuple):
        return next((d for d in map(_dtype_of, x) if d is not None), None)
    return x.dtype if isinstance(x, Tensor) and x.is_floating_point() else None
