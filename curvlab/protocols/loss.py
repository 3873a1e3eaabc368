"""Losses: the value of a batch, and its curvature in the model's outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault

#: how the terms of one example are reduced
Over = Literal["mean", "sum"]

#: weights of a batch's terms: one for all, one for each, or a tuple of these for each output
Weights = Any

#: entries of a batch in which a loss finds its targets, the first of them
TARGETS = ("labels", "label", "targets", "target")


class Loss(ABC):
    """The loss of a batch, as an objective evaluates it; ``RowLoss`` is what most authors subclass.

    ``outputs`` are what ``prediction`` makes of the model's: a tensor, or a tuple of tensors, examples
    leading.  The loss of n examples is ``(1/n) total(outputs, targets, weights)``, and its curvature in the
    outputs is the Hessian of that, or the Fisher information where ``curvature`` says so.
    """

    over: Over

    #: what products, columns and samples are of: the Hessian in the outputs, or the Fisher information
    curvature: ClassVar[Literal["hessian", "fisher"]] = "hessian"

    @property
    def name(self) -> str:
        """What error messages call it."""
        return type(self).__name__

    def prediction(self, outputs: Any) -> Any:
        """What of a model's outputs the loss reads.

        An output that has ``logits``, as those of Hugging Face's models, stands for these.
        """
        if isinstance(outputs, Tensor):
            return outputs
        logits = outputs.get("logits") if isinstance(outputs, Mapping) else getattr(outputs, "logits", None)
        return logits if isinstance(logits, Tensor) else outputs

    def targets_in(self, batch: Mapping[str, Any]) -> Any:
        """The targets among the entries of a batch; raises ``ConfigError`` if there are none."""
        for key in TARGETS:
            if key in batch:
                return batch[key]
        raise ConfigError(
            Fault(
                f"{self.name}: the batch has the entries {', '.join(map(str, batch))}; expected its targets"
                f" as {' or '.join(TARGETS)}",
                hint="rename the entry, or call curvlab.objective(model, criterion, inputs, targets)",
            )
        )

    def require(self, outputs: Any, targets: Any) -> None:  # noqa: B027  # a loss may take anything
        """Raise ``ConfigError`` unless the loss takes outputs and targets of these shapes and dtypes."""

    def require_products(self) -> None:  # noqa: B027  # most losses have curvature
        """Raise ``UnsupportedEvidence`` if the loss has no curvature in the outputs."""

    def require_curvature(self, outputs: Any, targets: Any, weights: Weights) -> None:  # noqa: B027  # as above
        """Called before the first product: warn or raise if products with this loss make no sense."""

    def example(self, examples: int, generator: torch.Generator) -> tuple[Any, Any]:
        """Outputs and targets to try the loss on, in float64: what conformance checks evaluate."""
        shape, device = (examples, 3), generator.device
        f, y = (torch.randn(shape, dtype=torch.float64, generator=generator, device=device) for _ in "fy")
        return f, y

    # weights of terms

    def terms_per_example(self, targets: Any, examples: int) -> int:
        """How many terms, of the same number of outputs each, the loss of one example consists of."""
        return 1

    def total_weight(self, targets: Any, like: Tensor) -> Tensor | None:
        """What the mean over these terms is divided by; those of several parts of a batch add up.

        ``None`` where terms all count the same: the mean is over examples.
        """
        return None

    @abstractmethod
    def term_weights(
        self, targets: Any, examples: int, like: Tensor, per_weight: Callable[[], Tensor]
    ) -> Weights:
        """Weights of the terms of ``examples``, such that n times the mean loss is ``total`` with them.

        ``per_weight()`` is n over the total weight, for the n examples of which these may be a part.
        """

    # the value

    @abstractmethod
    def total(self, outputs: Any, targets: Any, weights: Weights) -> Float[Tensor, ""]:
        """The weighted sum of the terms."""

    @abstractmethod
    def mean(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        """The loss of a batch: mean over its examples."""

    # curvature in the outputs

    @abstractmethod
    def hessian_product(self, outputs: Any, targets: Any, weights: Weights, v: Any) -> Any:
        """The curvature of ``total`` in the outputs, times ``v``, which has their form."""

    @abstractmethod
    def hessian_columns(self, outputs: Any, targets: Any, weights: Weights) -> Iterator[Any]:
        """Vectors v in the form of the outputs: ``Σ v vᵀ`` of each example is its curvature in ``total``.

        Raises ``ConfigError`` if that is not positive semi-definite.
        """

    @abstractmethod
    def draw(self, outputs: Any, examples: int, generator: torch.Generator) -> Any:
        """Random numbers for ``sampled_column`` of so many examples, which lead; ``outputs`` are of some."""

    @abstractmethod
    def sampled_column(self, outputs: Any, targets: Any, weights: Weights, noise: Any) -> Any:
        """A random vector v of mean zero: ``E v vᵀ`` of each example is its curvature in ``total``."""
