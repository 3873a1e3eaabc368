"""Binary cross-entropy on logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.losses.elementwise import ElementwiseLoss
from curvlab.protocols.bounds import NotNegative, check_bounds
from curvlab.protocols.loss import Over


@dataclass(frozen=True)
class BinaryCrossEntropy(ElementwiseLoss):
    """Binary cross-entropy on logits, per coordinate; targets in [0, 1].

    With ``weights`` w and ``positive_weights`` q, one for each coordinate, it is
    ``−w [q y log p + (1 − y) log(1 − p)]``, whose second derivative is ``w (1 + (q − 1) y) p (1 − p)``.
    """

    over: Over = "mean"  #: coordinates of an example: mean or sum
    weights: tuple[NotNegative, ...] = ()  #: w, one for each coordinate; none: 1
    positive_weights: tuple[NotNegative, ...] = ()  #: q, one for each coordinate, or one for all; none: 1

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def name(self) -> str:
        return "BCEWithLogitsLoss"

    def example(self, examples: int, generator: torch.Generator) -> tuple[Any, Any]:
        given = max(len(self.weights), len(self.positive_weights))
        shape = (examples, given if given > 1 else 3)
        device = generator.device
        f, y = (torch.randn(shape, dtype=torch.float64, generator=generator, device=device) for _ in "fy")
        return f, y.sigmoid()

    def require(self, outputs: Any, targets: Any) -> None:
        super().require(outputs, targets)
        c = outputs.shape[-1] if outputs.dim() > 1 else 1
        for what, given in (("weights", self.weights), ("positive weights", self.positive_weights)):
            if len(given) not in (0, 1, c):
                said = f"{self.name}: {len(given)} {what} for outputs of shape {tuple(outputs.shape)}"
                raise ConfigError(Fault(said, hint=f"give one for each of the {c} coordinates"))

    def each(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, "r c"]:
        w, q = _like(self.weights, rows), _like(self.positive_weights, rows)
        return F.binary_cross_entropy_with_logits(rows, targets, w, reduction="none", pos_weight=q)

    def second(self, rows: Float[Tensor, "r c"], targets: Tensor) -> float | Tensor:
        p = rows.sigmoid()
        found = p * (1.0 - p)
        weight = self._weight(rows, targets)
        return found if weight is None else found * weight

    def noise(
        self, rows: int, like: Float[Tensor, "_ c"], generator: torch.Generator
    ) -> Float[Tensor, "r _"]:
        shape = (rows, like.shape[1])
        return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)

    def sampled(
        self, rows: Float[Tensor, "r c"], targets: Any, noise: Float[Tensor, "r _"]
    ) -> Float[Tensor, "r c"]:
        p = rows.sigmoid()
        v = p - (noise < p).to(p.dtype)
        weight = self._weight(rows, targets)
        scale: float = self.kappa(rows) ** 0.5
        return v * scale if weight is None else v * (scale * weight.sqrt())

    def _weight(self, rows: Tensor, targets: Tensor) -> Tensor | None:
        """What multiplies p (1 − p): ``w (1 + (q − 1) y)``."""
        w, q = _like(self.weights, rows), _like(self.positive_weights, rows)
        if q is not None:
            of_targets = 1.0 + (q - 1.0) * targets
            return of_targets if w is None else of_targets * w
        return w


def _like(weights: tuple[float, ...], rows: Tensor) -> Tensor | None:
    """Weights as a tensor beside the rows; ``None`` if there are none."""
    return torch.tensor(weights, dtype=rows.dtype, device=rows.device) if weights else None
