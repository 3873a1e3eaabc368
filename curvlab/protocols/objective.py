"""Objectives: a loss on a batch, ready to be asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs

#: what a sample is for
Purpose = Literal["gradient", "curvature", "acceptance"]


class Objective(ABC):
    """A model, a loss and the examples of one step."""

    @abstractmethod
    def __call__(self) -> Float[Tensor, ""]:
        """A torch closure: zero the gradients, forward, backward; returns the loss."""

    @abstractmethod
    def loss(self, at: Mapping[str, Tensor] | None = None) -> Float[Tensor, ""]:
        """The mean loss on the acceptance sample, at other values of named parameters if given.

        Functional: neither parameters nor buffers change, and stochastic layers repeat themselves.
        """

    @abstractmethod
    def differentiate(
        self, at: Mapping[str, Tensor], *, acceptance: bool = False
    ) -> tuple[Float[Tensor, ""], Mapping[str, Tensor]]:
        """Mean loss and its gradient by parameter, at other values of parameters; functional, like ``loss``.

        On the gradient sample, or on the acceptance sample.
        """

    def start(self, seen: Evaluation) -> Float[Tensor, ""]:
        """The loss at the current parameters on the acceptance sample, ``seen`` being known."""
        return self.loss()

    def mark(self, *, again: bool = False) -> Hashable:
        """What the gradient on the gradient sample depends on beside the trained parameters.

        Equal marks stand for equal functions, to the bit, so that a gradient need not be evaluated twice.
        ``None``, if the objective cannot say, or draws random numbers: it is then evaluated in every step.
        ``again``: the examples are those of the last call, and need not be read.
        """
        return None

    def total_weight(self, purpose: Purpose) -> float:
        """What the mean over this sample is divided by: its examples, or the sum of their weights.

        Several processes share a mean by it; raises ``ConfigError`` if the objective does not say.
        """
        raise ConfigError(
            Fault(
                f"{type(self).__name__} does not define total_weight(purpose), the weight of its mean;"
                " training in several processes needs it",
                hint="define total_weight(purpose) in the objective",
            )
        )

    def cast(self, dtype: torch.dtype) -> Objective | None:
        """The same objective on data of another dtype, or ``None`` if it cannot be had."""
        return None

    @abstractmethod
    def evaluate(self, needs: Needs, blocks: Blocks, ctx: Context) -> Evaluation:
        """Loss and gradient on the gradient sample, and what else ``needs`` asks for."""
