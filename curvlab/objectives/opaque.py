"""Criteria that are known by their values alone, and losses that a model returns itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault, UnsupportedEvidence
from curvlab.objectives.loss import Loss, Over
from curvlab.objectives.shapes import described
from curvlab.objectives.twice import ALTERNATIVES, differentiating_twice, require_twice


class NoCurvature(UserWarning):
    """A criterion is linear in the outputs: Gauss-Newton products with it are zero."""


@dataclass(frozen=True)
class Opaque(Loss):
    """A criterion of unknown form: any callable of (outputs, targets).

    Outputs and targets are passed as they are, tensors or containers of tensors.  The criterion gives
    values, gradients and, differentiated twice in the outputs, GGN products (which are PSD only if it is
    convex in the outputs); it defines no sampling of labels.
    """

    criterion: Callable[[Any, Any], Tensor]
    over: Over = "mean"

    def rows(self, outputs: Tensor) -> Float[Tensor, "r c"]:
        return outputs.unsqueeze(-1) if outputs.dim() == 1 else outputs.flatten(1)

    def unrow(self, rows: Float[Tensor, "r c"], outputs: Tensor) -> Tensor:
        return rows.view(outputs.shape)

    def target_rows(self, targets: Tensor) -> Tensor:
        return targets

    def terms(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, " r"]:
        raise AssertionError("an opaque loss is evaluated as a whole, by value()")

    def value(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        """What the criterion returns; raises ``ConfigError`` if that is no scalar tensor."""
        value = self.criterion(outputs, targets)
        if not isinstance(value, Tensor) or value.dim() != 0:
            what = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ConfigError(
                Fault(
                    f"the criterion returned {what}; expected a scalar tensor",
                    hint='return the mean over the examples, or their sum with reduction = "sum"',
                )
            )
        return value

    def mean(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        value = self.value(outputs, targets)
        return value if self.over == "mean" else value / outputs.shape[0]

    def total(self, outputs: Any, targets: Any, examples: int) -> Float[Tensor, ""]:
        """Σ over ``examples`` of ℓ_n."""
        value = self.value(outputs, targets)
        return value * examples if self.over == "mean" else value

    def require_products(self) -> None:
        """Raise ``UnsupportedEvidence`` if there is no function of the outputs to differentiate twice."""

    def bent(self, outputs: Tensor, v: Tensor, total: Callable[[Tensor], Tensor]) -> Tensor:
        """The Hessian of ``total`` at ``outputs``, times ``v``.

        Raises ``ConfigError``, which names the criterion, if torch cannot differentiate it twice.
        """
        with torch.enable_grad():
            f = outputs.detach().requires_grad_()
            value = total(f)
            if not value.requires_grad:
                return torch.zeros_like(v)
            what = f"the criterion {self.criterion!r}"
            with differentiating_twice(what):
                (g,) = torch.autograd.grad(value, f, create_graph=True, materialize_grads=True)
                if not g.requires_grad:
                    return torch.zeros_like(v)
                require_twice(what, [g])
                (found,) = torch.autograd.grad(g, f, v, materialize_grads=True)
        return found

    def warn_if_flat(self, bent: Tensor) -> None:
        """Warn (``NoCurvature``) if the Hessian's product with a random vector is zero."""
        if not bool(bent.any()):
            warnings.warn(
                f"the criterion {self.criterion!r} is linear in the outputs, so Gauss-Newton products"
                " are zero and only damping is left. If the outputs are log-probabilities, use"
                " nn.NLLLoss() or F.nll_loss; for logits, use nn.CrossEntropyLoss()",
                NoCurvature,
                stacklevel=3,
            )

    def columns(self, rows: Float[Tensor, "r c"]) -> int:
        raise self.unknown("exact")

    def column(self, rows: Float[Tensor, "r c"], k: int) -> Float[Tensor, "r c"]:
        raise self.unknown("exact")

    def noise(self, shape: tuple[int, int], like: Tensor, generator: torch.Generator) -> Float[Tensor, "r _"]:
        raise self.unknown("model")

    def sampled(self, rows: Float[Tensor, "r c"], noise: Tensor) -> Float[Tensor, "r c"]:
        raise self.unknown("model")

    def curved(
        self, rows: Float[Tensor, "r c"], targets: Tensor, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        raise AssertionError("an opaque loss is differentiated as a whole")

    def unknown(self, labels: str) -> UnsupportedEvidence:
        """The error for these labels."""
        return UnsupportedEvidence(
            part=f'labels = "{labels}"',
            block="",
            expected="a loss whose output Hessian is known",
            got=f"the criterion {self.criterion!r}",
            hint='use labels = "data", or CrossEntropyLoss, NLLLoss, MSELoss or BCEWithLogitsLoss',
        )


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
class ModelLoss(Opaque):
    """The loss that the model returns itself (``own_loss``); there are no targets beside the batch."""

    criterion: Callable[[Any, Any], Tensor] = field(default_factory=lambda: own_loss, init=False)
    over: Over = "mean"

    def require_products(self) -> None:
        raise self.unknown("none", "Gauss-Newton products", "a criterion of the model's outputs")

    def unknown(self, labels: str, part: str = "", expected: str = "") -> UnsupportedEvidence:
        return UnsupportedEvidence(
            part=part or f'labels = "{labels}"',
            block="",
            expected=expected or "a criterion whose output Hessian is known",
            got="a loss that the model returns itself",
            hint="give a criterion and targets: curvlab.objective(model, criterion, inputs, targets); or "
            + ALTERNATIVES,
        )
