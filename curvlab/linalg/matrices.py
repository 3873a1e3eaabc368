"""The parameters of a vector, as matrices that share its memory."""

from __future__ import annotations

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.columns import Columns
from curvlab.linalg.vectors import BlockVector


def parameters(v: BlockVector) -> Iterator[tuple[str, Columns, Float[Tensor, "o c"]]]:
    """Block, columns and view of every parameter, in the order of the layout.

    A row holds all entries that belong to one output of a layer, a convolution's kernel flattened.  A vector
    is one column, a number one row.  The pairs of reals of a complex parameter are neighboring columns.
    """
    for name, block in v.items():
        matrix = block.flatten(1) if block.dim() > 1 else block.reshape(-1, 1)
        for columns in v.layout.columns[name]:
            yield name, columns, matrix[:, columns.start : columns.stop]


def matrices(v: BlockVector) -> Iterator[tuple[str, Columns, Float[Tensor, "o c"]]]:
    """The same of parameters with at least two dimensions: weights, not biases or scales of norms."""
    return (each for each in parameters(v) if each[1].matrix)
