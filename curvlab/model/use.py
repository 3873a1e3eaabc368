"""One use of a block's parameters in a forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from curvlab.protocols.blocks import Block
from curvlab.protocols.reader import LayerReader


@dataclass(frozen=True)
class Use:
    """A layer was called: what it was called on, and its output.

    ``reader`` says how rows are made of this use.  ``transposed``: it used the block's transposed matrix.
    """

    block: Block
    module: nn.Module
    reader: LayerReader
    x: Any
    output: Tensor
    transposed: bool
