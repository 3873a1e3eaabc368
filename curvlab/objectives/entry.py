"""One recorded call of a layer: the rows of its input, and of the gradients that arrived at its output."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.lookups import AnyRows, Lookups
from curvlab.model.arrangement import Called
from curvlab.model.captured import gradient_rows, input_rows
from curvlab.model.use import Use
from curvlab.objectives.examples import Forward
from curvlab.protocols.reader import as_dtype


class Entry:
    """One call of one layer: its input, its rows once they are wanted, and the gradient rows entered.

    ``transposed``: it uses the transposed matrix of its block.
    """

    __slots__ = (
        "block",
        "forward",
        "grads",
        "kept",
        "module",
        "output_dtype",
        "reader",
        "shape",
        "transposed",
        "x",
    )

    def __init__(self, use: Use, forward: Forward) -> None:
        self.block, self.module, self.reader, self.x = use.block, use.module, use.reader, use.x
        self.shape, self.output_dtype = use.output.shape, use.output.dtype
        self.transposed, self.forward = use.transposed, forward
        self.kept: AnyRows | None = None
        self.grads: Tensor | None = None

    @property
    def called(self) -> Called:
        """What its arrangement by example follows from."""
        axes = self.reader.axes(self.module, self.x, self.shape)
        return Called(axes, self.reader.rows(self.module, self.x, self.shape))

    def inputs(self) -> AnyRows:
        """The input as rows ``[m, r, i]``, bias column included; made once."""
        if self.kept is None:
            self.kept = input_rows(self.reader, self.module, self.x, self.output_dtype)
        return self.kept

    def outputs(self, g: Tensor) -> Float[Tensor, "m s o"]:
        """An output gradient as rows."""
        return gradient_rows(self.reader, self.module, g.reshape(self.shape), self.x)

    def along(
        self, u: Tensor, v: Tensor, start: int, rows: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """``uᵀ M v`` of what it adds to the block by gradient rows ``[m, s, o]``, and a bound on it.

        v is on the columns from ``start`` on.
        """
        k, a = self.reader.groups(self.module), self.inputs().to(dtype)
        o = self.reader.shape(self.module)[0]
        flat = rows.to(dtype).reshape(-1, o)
        if self.transposed:
            left, right = flat @ v, _pushed(a, u, 0)
        else:
            left = flat @ u if k == 1 else (flat * u).view(-1, k, o // k).sum(-1).flatten()
            right = _pushed(a, v, start)
        return left @ right, left.abs() @ right.abs()

    def row(self, k: int, g: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """What it adds to row k of the first parameter's columns of the block, and a bound on it."""
        if not self.transposed:
            x, g = as_dtype(self.x, dtype), g.reshape(self.shape).to(dtype)
            return self.reader.row(self.module, x, g, k)
        a = self.inputs().to(dtype)
        flat = self.outputs(g).to(dtype).flatten(0, 1)
        column = (a.index == k).to(dtype) if isinstance(a, Lookups) else a[..., k]
        size = torch.linalg.vector_norm(flat) * torch.linalg.vector_norm(column)
        return column.flatten() @ flat, size


def _pushed(rows: AnyRows, v: Tensor, start: int) -> Float[Tensor, " r"]:
    """Rows ``[*r, d]`` times a vector on the columns from ``start`` on."""
    if isinstance(rows, Lookups):
        return v[rows.index.reshape(-1)]
    return rows.reshape(-1, rows.shape[-1])[:, start : start + len(v)] @ v
