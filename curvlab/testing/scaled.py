"""A loss times a constant, to see what depends on the scale of the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.objectives.row_loss import RowLoss


@dataclass(frozen=True)
class Scaled(RowLoss):
    """``by · ℓ`` of the loss ``base``, and its curvature, ``by`` > 0."""

    base: RowLoss
    by: float

    @property
    def over(self) -> Any:  # type: ignore[override]
        """As the loss's own."""
        return self.base.over

    def require(self, outputs: Any, targets: Any) -> None:
        self.base.require(outputs, targets)

    def rows(self, outputs: Any) -> Float[Tensor, "r c"]:
        return self.base.rows(outputs)

    def unrow(self, rows: Float[Tensor, "r c"], outputs: Any) -> Any:
        return self.base.unrow(rows, outputs)

    def target_rows(self, targets: Any) -> Any:
        return self.base.target_rows(targets)

    def relative_weights(self, targets: Any, like: Tensor) -> Float[Tensor, " r"] | None:
        return self.base.relative_weights(targets, like)

    def divisor(self, targets: Any, relative: Float[Tensor, " r"]) -> Float[Tensor, ""]:
        return self.base.divisor(targets, relative)

    def terms(self, rows: Float[Tensor, "r c"], targets: Any) -> Float[Tensor, " r"]:
        return self.by * self.base.terms(rows, targets)

    def factor(self, rows: Float[Tensor, "r c"], targets: Any) -> Iterator[Tensor]:
        root: float = self.by**0.5
        for column in self.base.factor(rows, targets):
            yield root * column

    def noise(
        self, rows: int, like: Float[Tensor, "_ c"], generator: torch.Generator
    ) -> Float[Tensor, "r _"]:
        return self.base.noise(rows, like, generator)

    def sampled(
        self, rows: Float[Tensor, "r c"], targets: Any, noise: Float[Tensor, "r _"]
    ) -> Float[Tensor, "r c"]:
        root: float = self.by**0.5
        return root * self.base.sampled(rows, targets, noise)

    def product(
        self, rows: Float[Tensor, "r c"], targets: Any, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        return self.by * self.base.product(rows, targets, v)
