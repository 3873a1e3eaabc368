"""Products along the axes of a tensor: Kronecker products with a factor for each of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from curvlab.linalg.kronecker import Factor
from curvlab.linalg.operator import BlockOperator
from curvlab.linalg.outer import Outer


@dataclass(frozen=True)
class ModeProducts(BlockOperator):
    """A tensor with a symmetric factor multiplied to every axis; ``shape`` is that of the factors."""

    shape: tuple[int, ...]
    factors: tuple[Factor, ...]

    def product(self, v: Tensor | Outer, out: Tensor | None = None) -> Tensor:
        V = v.dense() if isinstance(v, Outer) else v
        W = V.reshape(self.shape)
        for n, factor in enumerate(self.factors):
            W = on_axis(W, n, factor.rmatmul)
        W = W.reshape(V.shape)
        return W if out is None else out.copy_(W)


def on_axis(T: Tensor, n: int, multiply: Callable[[Tensor], Tensor]) -> Tensor:
    """T with ``multiply``, a map of rows ``[r, d]``, applied along axis n."""
    rows = T.movedim(n, -1)
    return multiply(rows.reshape(-1, T.shape[n])).reshape(rows.shape).movedim(-1, n)
