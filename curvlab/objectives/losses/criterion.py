"""Criteria that are known by their values alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.losses.example_roots import (
    Apart,
    Differentiated,
    ExampleRoots,
    flattened,
    leading,
    places_of,
    rows_of,
)
from curvlab.objectives.nested import as_one
from curvlab.objectives.semidefinite import require_not_descending
from curvlab.protocols.loss import Loss, Over, Weights


class NoCurvature(UserWarning):
    """A criterion is linear in the outputs: Gauss-Newton products with it are zero."""


@dataclass(frozen=True)
class CriterionLoss(Loss):
    """A criterion known by its value: any callable of (outputs, targets) that returns a scalar.

    Outputs and targets are passed as they are, tensors or containers of tensors; the batch stands for the
    targets where no others are given.  Autograd computes curvature: products with the Hessian, and columns of
    its root, example by example, from c such products and an eigen-decomposition ``[c, c]`` for the c output
    numbers of an example.  Sampled vectors are that root times random signs.  Raises ``ConfigError``, which
    names the criterion, if torch cannot differentiate it twice, if its Hessian is not positive
    semi-definite, or, for columns and samples, if it couples examples.
    """

    criterion: Callable[[Any, Any], Tensor]
    over: Over = "mean"

    @property
    def name(self) -> str:
        return f"the criterion {self.criterion!r}"

    def prediction(self, outputs: Any) -> Any:
        return outputs

    def targets_in(self, batch: Mapping[str, Any]) -> Any:
        return batch

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

    def mean(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        value = self.value(outputs, targets)
        if self.over == "mean":
            return value
        return torch.div(value, leading(outputs))

    def term_weights(
        self, targets: Any, examples: int, like: Tensor, per_weight: Callable[[], Tensor]
    ) -> float:
        return float(examples) if self.over == "mean" else 1.0

    def total(self, outputs: Any, targets: Any, weights: Weights) -> Float[Tensor, ""]:
        found: Tensor = self.value(outputs, targets) * weights
        return found

    # curvature

    def require_curvature(self, outputs: Any, targets: Any, weights: Weights) -> None:
        """Warn (``NoCurvature``) if the Hessian's product with a random vector is zero."""
        f, apart = as_one(outputs)
        draw = torch.Generator(device="cpu").manual_seed(0)
        v = torch.randn(f.shape, dtype=f.dtype, generator=draw, device="cpu").to(f.device)
        bent, _ = as_one(self.hessian_product(outputs, targets, weights, apart(v)))
        if not bool(bent.any()):
            warnings.warn(
                f"{self.name} is linear in the outputs, so Gauss-Newton products"
                " are zero and only damping is left. If the outputs are log-probabilities, use"
                " nn.NLLLoss() or F.nll_loss; for logits, use nn.CrossEntropyLoss()",
                NoCurvature,
                stacklevel=3,
            )

    def hessian_product(self, outputs: Any, targets: Any, weights: Weights, v: Any) -> Any:
        graph, apart = self._differentiated(outputs, targets, weights)
        found = apart(graph.product(flattened(v)[0]))
        along, product = rows_of(v, found)
        require_not_descending(along, product, self.name, "example")
        return found

    def hessian_columns(self, outputs: Any, targets: Any, weights: Weights) -> Iterator[Any]:
        graph, apart = self._differentiated(outputs, targets, weights)
        roots = ExampleRoots.of(graph, places_of(outputs, graph.used(), self.name))
        yield from map(apart, roots.columns())

    def draw(self, outputs: Any, examples: int, generator: torch.Generator) -> Tensor:
        flat, _ = flattened(outputs)
        each = flat.numel() // max(1, leading(outputs))
        bits = torch.randint(0, 2, (examples, each), generator=generator, device=flat.device)
        return bits.to(flat.dtype).mul_(2.0).sub_(1.0)

    def sampled_column(self, outputs: Any, targets: Any, weights: Weights, noise: Any) -> Any:
        graph, apart = self._differentiated(outputs, targets, weights)
        return apart(ExampleRoots.of(graph, places_of(outputs, graph.used(), self.name)).times(noise))

    def _differentiated(self, outputs: Any, targets: Any, weights: Weights) -> tuple[Differentiated, Apart]:
        """The total at these outputs, and what makes outputs of a vector."""
        flat, apart = flattened(outputs)
        return Differentiated.at(flat, lambda f: self.total(apart(f), targets, weights), self.name), apart
