"""The loss that a model returns itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from curvlab.errors import ConfigError, Fault, UnsupportedEvidence
from curvlab.objectives.losses.criterion import CriterionLoss
from curvlab.objectives.shapes import described
from curvlab.objectives.twice import ALTERNATIVES
from curvlab.protocols.loss import Over, Weights


def own_loss(outputs: Any, targets: Any = None) -> Tensor:
    """The loss that a model returned: its output, the output's ``loss``, or the entry ``"loss"``.

    Raises ``ConfigError`` if there is none.
    """
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("loss")
    elif not isinstance(outputs, Tensor):
        found = getattr(outputs, "loss", None)
    if isinstance(found, Tensor) and found.dim() == 0:
        return found
    raise ConfigError(
        Fault(
            f"there is no criterion, so the model must return its loss; it returned {described(outputs)}",
            hint='give a criterion and targets, or return a scalar or an output with a scalar "loss"'
            ' (for a Hugging Face model, put "labels" into the batch)',
        )
    )


@dataclass(frozen=True)
class ModelLoss(CriterionLoss):
    """The loss that the model returns itself (``own_loss``); there are no targets beside the batch."""

    criterion: Callable[[Any, Any], Tensor] = field(default_factory=lambda: own_loss, init=False)
    over: Over = "mean"

    def require_products(self) -> None:
        raise self._unknown("Gauss-Newton products", "a criterion of the model's outputs")

    def hessian_columns(self, outputs: Any, targets: Any, weights: Weights) -> Iterator[Any]:
        raise self._unknown('labels = "exact"', "a criterion of the model's outputs")

    def draw(self, outputs: Any, examples: int, generator: torch.Generator) -> Tensor:
        raise self._unknown('labels = "model"', "a criterion of the model's outputs")

    def _unknown(self, part: str, expected: str) -> UnsupportedEvidence:
        return UnsupportedEvidence(
            part=part,
            block="",
            expected=expected,
            got="a loss that the model returns itself",
            hint="give a criterion, such as LanguageModel() of curvlab.objectives.losses:"
            " curvlab.objective(model, criterion, batch); or " + ALTERNATIVES,
        )
