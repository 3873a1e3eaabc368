"""What a loss is: rows of outputs, terms, weights, and curvature row by row."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

Over = Literal["mean", "sum"]


class Loss(ABC):
    """A loss, row by row."""

    over: Over

    def require(self, outputs: Any, targets: Any) -> None:  # noqa: B027  # a loss may take anything
        """Raise ``ConfigError`` unless the loss takes outputs and targets of these shapes and dtypes."""

    @abstractmethod
    def rows(self, outputs: Tensor) -> Float[Tensor, "r c"]:
        """Outputs as one row per loss term, coordinates last."""

    @abstractmethod
    def unrow(self, rows: Float[Tensor, "r c"], outputs: Tensor) -> Tensor:
        """Rows back in the shape of ``outputs``."""

    @abstractmethod
    def target_rows(self, targets: Tensor) -> Tensor:
        """Targets with one leading entry per loss term."""

    @abstractmethod
    def terms(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, " r"]:
        """ℓ_r for each row."""

    def relative_weights(self, targets: Tensor, like: Tensor) -> Float[Tensor, " r"] | None:
        """Relative weights of rows in ``like``'s dtype, or ``None`` if all count the same."""
        return None

    @abstractmethod
    def columns(self, rows: Float[Tensor, "r c"]) -> int:
        """How many columns S has."""

    @abstractmethod
    def column(self, rows: Float[Tensor, "r c"], k: int) -> Float[Tensor, "r c"]:
        """Column k of every row's S."""

    @abstractmethod
    def noise(self, shape: tuple[int, int], like: Tensor, generator: torch.Generator) -> Float[Tensor, "r _"]:
        """What ``sampled`` turns into labels, for all rows of a batch at once."""

    @abstractmethod
    def sampled(self, rows: Float[Tensor, "r c"], noise: Tensor) -> Float[Tensor, "r c"]:
        """Gradient of ℓ_r for labels sampled from the model."""

    @abstractmethod
    def curved(
        self, rows: Float[Tensor, "r c"], targets: Tensor, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        """∇²ℓ_r v, row by row (the PSD part that the GGN is made of)."""

    def mean(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        """The loss of a batch: mean over examples, the leading axis of ``outputs``."""
        rows, t = self.rows(outputs), self.target_rows(targets)
        n = outputs.shape[0]
        return weighted(self.terms(rows, t), self.row_weights(t, n, like=rows)) / n

    def row_weights(self, targets: Tensor, examples: int, *, like: Tensor) -> float | Float[Tensor, " r"]:
        """Weight w_r of each target row, such that ``Σ_r w_r ℓ_r / n`` is the loss of n examples."""
        relative = self.relative_weights(targets, like)
        if relative is None:
            return examples / targets.shape[0] if self.over == "mean" else 1.0
        return relative if self.over == "sum" else relative * (examples / self.mass(targets, like))

    def mass(self, targets: Tensor, like: Tensor) -> Float[Tensor, ""]:
        """What the mean over these rows is divided by; of several parts of a sample it adds up."""
        relative = self.relative_weights(targets, like)
        return count(targets) if relative is None else relative.sum()


def weighted(terms: Float[Tensor, " r"], weights: float | Float[Tensor, " r"]) -> Float[Tensor, ""]:
    """``Σ_r w_r ℓ_r``."""
    return terms.sum() * weights if isinstance(weights, float) else torch.dot(terms, weights)


def count(targets: Tensor) -> Float[Tensor, ""]:
    """How many rows: exact in float64, without an effect on the dtype of what it divides."""
    return torch.tensor(float(targets.shape[0]), dtype=torch.float64, device="cpu")
