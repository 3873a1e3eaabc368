"""Losses that are a sum over output coordinates: their Hessian in a row is diagonal."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.objectives.row_loss import ROW, RowLoss
from curvlab.objectives.semidefinite import require_not_negative
from curvlab.objectives.shapes import require_elementwise
from curvlab.objectives.twice import differentiating_twice, require_twice


class ElementwiseLoss(RowLoss):
    """``κ Σ_k h(f_k, y_k)``: κ is 1 over the number of coordinates, or 1 where ``over = "sum"``.

    An author writes ``each``, which is h; ``second`` is its second derivative in f, by autograd where it is
    not given.
    """

    @abstractmethod
    def each(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, "r c"]:
        """h of every output coordinate and its target, by torch operations."""

    def second(self, rows: Float[Tensor, "r c"], targets: Tensor) -> float | Tensor:
        """h'' of every coordinate; raises ``ConfigError`` where that is negative."""
        with torch.enable_grad():
            f = rows.detach().double().requires_grad_()
            value = self.each(f, targets.double()).sum()
            with differentiating_twice(self.name):
                (g,) = torch.autograd.grad(value, f, create_graph=True, materialize_grads=True)
                if not g.requires_grad:
                    return 0.0
                require_twice(self.name, [g])
                (h,) = torch.autograd.grad(g.sum(), f, materialize_grads=True)
        require_not_negative(h, h.dtype, self.name, ROW)
        return h.clamp_(min=0.0).to(rows.dtype)

    def require(self, outputs: Any, targets: Any) -> None:
        require_elementwise(self.name, outputs, targets)

    def target_rows(self, targets: Any) -> Any:
        return self.rows(targets if targets.is_floating_point() else targets.to(torch.get_default_dtype()))

    def terms(self, rows: Float[Tensor, "r c"], targets: Any) -> Float[Tensor, " r"]:
        return self.each(rows, targets).sum(-1) * self.kappa(rows)

    def kappa(self, rows: Tensor) -> float:
        """Weight of one coordinate in its row's loss."""
        return 1.0 / rows.shape[1] if self.over == "mean" else 1.0

    def factor(self, rows: Float[Tensor, "r c"], targets: Any) -> Iterator[Tensor]:
        root = self._root(rows, targets)
        for k in range(rows.shape[1]):
            v = torch.zeros_like(rows)
            v[:, k] = root if isinstance(root, float) else root[:, k]
            yield v

    def product(
        self, rows: Float[Tensor, "r c"], targets: Any, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        return v * (self.second(rows, targets) * self.kappa(rows))

    def sampled(
        self, rows: Float[Tensor, "r c"], targets: Any, noise: Float[Tensor, "r _"]
    ) -> Float[Tensor, "r c"]:
        return noise * self._root(rows, targets)

    def _root(self, rows: Tensor, targets: Tensor) -> float | Tensor:
        return (self.second(rows, targets) * self.kappa(rows)) ** 0.5
