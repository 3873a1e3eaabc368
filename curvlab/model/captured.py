"""Rows of a layer's call, in the dtype of its output: what it computed in, which autocast may change."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from curvlab.linalg.lookups import AnyRows
from curvlab.linalg.work import work_dtype
from curvlab.protocols.reader import LayerReader, as_dtype


def input_rows(reader: LayerReader, module: nn.Module, x: Any, dtype: torch.dtype) -> AnyRows:
    """What a layer read, as rows ``[n, r, i]``; ``dtype`` is that of its output."""
    return reader.inputs(module, as_dtype(x, dtype)).to(dtype)


def gradient_rows(reader: LayerReader, module: nn.Module, g: Tensor, x: Any) -> Tensor:
    """A gradient of its output, as rows ``[n, s, o]``."""
    return reader.grads(module, g, as_dtype(x, g.dtype))


def sums_coarsely(reader: LayerReader, dtype: torch.dtype) -> bool:
    """Whether torch may have lost most digits of a gradient, of a layer whose output has this dtype."""
    return reader.coarse_sums and dtype != work_dtype(dtype)
