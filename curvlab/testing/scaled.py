"""A loss times a constant, to see what depends on the scale of the loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.objectives.loss import Loss


@dataclass(frozen=True)
class Scaled(Loss):
    """``factor · ℓ`` of the loss ``base``, and its curvature, ``factor`` > 0."""

    base: Loss
    factor: float

    @property
    def over(self) -> Any:  # type: ignore[override]
        """As the loss's own."""
        return self.base.over

    def require(self, outputs: Any, targets: Any) -> None:
        self.base.require(outputs, targets)

    def rows(self, outputs: Tensor) -> Float[Tensor, "r c"]:
        return self.base.rows(outputs)

    def unrow(self, rows: Float[Tensor, "r c"], outputs: Tensor) -> Tensor:
        return self.base.unrow(rows, outputs)

    def target_rows(self, targets: Tensor) -> Tensor:
        return self.base.target_rows(targets)

    def relative_weights(self, targets: Tensor, like: Tensor) -> Float[Tensor, " r"] | None:
        return self.base.relative_weights(targets, like)

    def terms(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, " r"]:
        return self.factor * self.base.terms(rows, targets)

    def columns(self, rows: Float[Tensor, "r c"]) -> int:
        return self.base.columns(rows)

    def column(self, rows: Float[Tensor, "r c"], k: int) -> Float[Tensor, "r c"]:
        root: float = self.factor**0.5
        return root * self.base.column(rows, k)

    def noise(self, shape: tuple[int, int], like: Tensor, generator: torch.Generator) -> Float[Tensor, "r _"]:
        return self.base.noise(shape, like, generator)

    def sampled(self, rows: Float[Tensor, "r c"], noise: Tensor) -> Float[Tensor, "r c"]:
        root: float = self.factor**0.5
        return root * self.base.sampled(rows, noise)

    def curved(
        self, rows: Float[Tensor, "r c"], targets: Tensor, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        return self.factor * self.base.curved(rows, targets, v)
