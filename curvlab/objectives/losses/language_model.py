"""The loss of language models: each token is predicted from those before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.losses.cross_entropy import TORCH_IGNORES, CrossEntropy
from curvlab.objectives.shapes import require_logits


@dataclass(frozen=True)
class LanguageModel(CrossEntropy):
    """Cross-entropy of ``logits[:, t]`` on ``labels[:, t + 1]``, as Hugging Face's causal language models.

    Logits are ``[n, T, V]`` and labels ``[n, T]``: the tokens themselves, as the loss shifts them.  Labels
    that are ``ignore_index`` are left out.  The mean is over the tokens of the batch that count.  It takes
    the entry ``"labels"`` of a batch and the ``logits`` of an output.
    """

    ignore_index: int | None = TORCH_IGNORES  #: the label that is left out of the mean
    classes: Literal["second", "last"] = "last"  #: the axis of the logits that counts the vocabulary
    shift: bool = True  #: labels are the inputs' tokens; false: each stands at its prediction already

    @property
    def name(self) -> str:
        return "LanguageModel"

    def example(self, examples: int, generator: torch.Generator) -> tuple[Any, Any]:
        c, length = len(self.class_weights) or 3, 4
        f = torch.randn(
            examples, length, c, dtype=torch.float64, generator=generator, device=generator.device
        )
        labels = torch.randint(0, c, (examples, length), generator=generator, device=generator.device)
        if self.ignore_index is not None:
            labels[0, 1] = self.ignore_index
        return f, labels

    def require(self, outputs: Any, targets: Any) -> None:
        if isinstance(outputs, Tensor) and outputs.dim() != 3:
            shape = tuple(outputs.shape)
            what = f"{self.name}: outputs of shape {shape}; expected logits [n, tokens, vocabulary]"
            raise ConfigError(Fault(what, hint="use cross-entropy for one prediction of each example"))
        require_logits(self.name, outputs, targets, len(self.class_weights), last=True)
        if self.shift and outputs.shape[1] < 2:
            what = f"{self.name}: sequences of one token predict nothing"
            raise ConfigError(Fault(what, hint="give longer sequences, or set shift = false"))

    def rows(self, outputs: Any) -> Float[Tensor, "r c"]:
        return super().rows(outputs[:, :-1] if self.shift else outputs)

    def unrow(self, rows: Float[Tensor, "r c"], outputs: Any) -> Any:
        if not self.shift:
            return super().unrow(rows, outputs)
        found = rows.new_zeros(outputs.shape)
        found[:, :-1] = rows.view(outputs[:, :-1].shape)
        return found

    def target_rows(self, targets: Any) -> Any:
        return super().target_rows(targets[:, 1:] if self.shift else targets)
