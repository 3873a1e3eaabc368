"""A batch of a loss's own example, whose values and curvature are vectors and matrices."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.objectives.nested import as_one, each_tensor, tensors_of
from curvlab.protocols.loss import Loss, Weights

#: examples of the whole batch
N = 5


@dataclass(frozen=True)
class Batch:
    """Outputs and targets of some examples, and the weights of their terms in a batch."""

    loss: Loss
    outputs: Any
    targets: Any
    examples: int
    whole: Any

    @cached_property
    def weights(self) -> Weights:
        """The weights of the terms, as parts of the whole."""
        like = next(tensors_of(self.outputs))

        def per_weight() -> Tensor:
            total = self.loss.total_weight(self.whole, like)
            assert total is not None, f"{self.loss.name}: term_weights asks for a total weight, which is None"
            return N / total

        return self.loss.term_weights(self.targets, self.examples, like, per_weight)

    @property
    def flat(self) -> Float[Tensor, " f"]:
        """All outputs as one vector."""
        return as_one(self.outputs)[0].reshape(-1)

    def apart(self, flat: Tensor) -> Any:
        """Outputs of such a vector."""
        one, apart = as_one(self.outputs)
        return apart(flat.view(one.shape))

    def total(self, flat: Tensor) -> Tensor:
        """The weighted sum of the terms at these outputs."""
        return self.loss.total(self.apart(flat), self.targets, self.weights)

    def columns(self) -> Float[Tensor, "v f"]:
        """Every column, as a vector."""
        found = self.loss.hessian_columns(self.outputs, self.targets, self.weights)
        return torch.stack([as_one(v)[0].reshape(-1) for v in found])

    def product(self, v: Tensor) -> Float[Tensor, " f"]:
        """The curvature times v."""
        found = self.loss.hessian_product(self.outputs, self.targets, self.weights, self.apart(v))
        return as_one(found)[0].reshape(-1)

    def sample(self, noise: Any) -> Float[Tensor, " f"]:
        """One sampled vector."""
        found = self.loss.sampled_column(self.outputs, self.targets, self.weights, noise)
        return as_one(found)[0].reshape(-1)

    def curvature(self) -> Float[Tensor, "f f"]:
        """Dense: the Hessian of the value by autograd, or products with the Fisher information."""
        if self.loss.curvature == "fisher":
            return torch.stack([self.product(e) for e in torch.eye(len(self.flat), dtype=self.flat.dtype)])
        found: Tensor = torch.autograd.functional.hessian(self.total, self.flat)  # type: ignore[no-untyped-call]
        return found

    def owners(self) -> Float[Tensor, " f"]:
        """The example of each output."""
        numbered = each_tensor(
            lambda t: (
                torch.arange(len(t), dtype=t.dtype).view(-1, *[1] * (t.dim() - 1)).expand(t.shape)
                if t.is_floating_point()
                else t
            ),
            self.outputs,
        )
        return as_one(numbered)[0].reshape(-1)
