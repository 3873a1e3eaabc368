"""Softmax cross-entropy, and the negative log-likelihood of log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from curvlab.objectives.row_loss import RowLoss
from curvlab.objectives.shapes import require_log_probabilities, require_logits
from curvlab.protocols.bounds import Bounds, NotNegative, check_bounds
from curvlab.protocols.loss import Over

#: what torch's functions and modules leave out of the mean unless told otherwise
TORCH_IGNORES = -100


@dataclass(frozen=True)
class CrossEntropy(RowLoss):
    """Softmax cross-entropy on logits, for class indices or class probabilities, as ``nn.CrossEntropyLoss``.

    Logits are ``[n, c]`` or ``[n, c, *]``, as torch's; with ``classes = "last"`` they are ``[n, *, c]``, as
    those of token classifiers.  The Hessian ``diag(p) − p pᵀ``, times the weight of a row, is the Fisher
    information: model labels are drawn from p.
    """

    over: Over = "mean"  #: terms of an example (tokens, pixels): mean or sum
    label_smoothing: Annotated[float, Bounds(least=0, most=1)] = 0.0  #: share of each target spread evenly
    ignore_index: int | None = None  #: the label that is left out of the mean
    class_weights: tuple[NotNegative, ...] = ()  #: one for each class; none: 1
    classes: Literal["second", "last"] = "second"  #: the axis of the logits that counts the classes

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def name(self) -> str:
        """What torch calls it."""
        return "CrossEntropyLoss"

    def example(self, examples: int, generator: torch.Generator) -> tuple[Any, Any]:
        c = len(self.class_weights) or 3
        f = torch.randn(examples, c, dtype=torch.float64, generator=generator, device=generator.device)
        return f, torch.randint(0, c, (examples,), generator=generator, device=generator.device)

    def require(self, outputs: Any, targets: Any) -> None:
        require_logits(self.name, outputs, targets, len(self.class_weights), last=self.classes == "last")

    def rows(self, outputs: Any) -> Float[Tensor, "r c"]:
        if outputs.dim() == 2:
            return outputs  # type: ignore[no-any-return]
        f: Tensor = outputs if self.classes == "last" else outputs.movedim(1, -1)
        return f.flatten(0, -2)

    def unrow(self, rows: Float[Tensor, "r c"], outputs: Any) -> Any:
        if outputs.dim() == 2 or self.classes == "last":
            return rows.view(outputs.shape)
        n, c, *rest = outputs.shape
        return rows.view(n, *rest, c).movedim(-1, 1)

    def target_rows(self, targets: Any) -> Any:
        return self.rows(targets) if targets.is_floating_point() else targets.flatten()

    def terms(self, rows: Float[Tensor, "r c"], targets: Any) -> Float[Tensor, " r"]:
        ignore = TORCH_IGNORES if self.ignore_index is None else self.ignore_index
        weight = self._class_weights(rows)
        each = F.cross_entropy(
            rows, targets, weight, reduction="none", ignore_index=ignore, label_smoothing=self.label_smoothing
        )
        weights = None if weight is None else self.relative_weights(targets, rows)
        return each if weights is None else each / weights.masked_fill(weights == 0, 1.0)

    def mean(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        if self.over == "sum" or self.ignore_index is None:
            return super().mean(outputs, targets)
        # torch's own mean is by the same weights, in one kernel
        return F.cross_entropy(
            self.rows(outputs),
            self.target_rows(targets),
            self._class_weights(outputs),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def relative_weights(self, targets: Any, like: Tensor) -> Float[Tensor, " r"] | None:
        weights = self._class_weights(like)
        if weights is None and (targets.is_floating_point() or self.ignore_index is None):
            return None
        hard = self._label_weights(targets, like)
        if weights is None or not self.label_smoothing:
            return hard
        # with soft targets t a row's Hessian is (Σ_c w_c t_c)(diag(p) − p pᵀ), and that sum is its weight
        everywhere = weights.mean() * self._kept(targets)
        return (1.0 - self.label_smoothing) * hard + self.label_smoothing * everywhere

    def divisor(self, targets: Any, relative: Float[Tensor, " r"]) -> Float[Tensor, ""]:
        # torch's mean over probabilities is over rows; over class indices it is weighted by the labels
        if targets.is_floating_point():
            return torch.tensor(float(targets.shape[0]), dtype=torch.float64, device="cpu")
        return self._label_weights(targets, relative).sum()

    def factor(self, rows: Float[Tensor, "r c"], targets: Any) -> Iterator[Tensor]:
        p = rows.softmax(-1)
        for k in range(rows.shape[1]):
            v = -p
            v[:, k] += 1.0
            yield p[:, k : k + 1].sqrt() * v

    def product(
        self, rows: Float[Tensor, "r c"], targets: Any, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        p = rows.softmax(-1)
        pv = p * v
        return pv - p * pv.sum(-1, keepdim=True)

    def noise(
        self, rows: int, like: Float[Tensor, "_ c"], generator: torch.Generator
    ) -> Float[Tensor, "r _"]:
        return torch.rand((rows, 1), generator=generator, dtype=like.dtype, device=like.device)

    def sampled(
        self, rows: Float[Tensor, "r c"], targets: Any, noise: Float[Tensor, "r _"]
    ) -> Float[Tensor, "r c"]:
        p = rows.softmax(-1)
        label = (p.cumsum(-1) < noise).sum(-1, keepdim=True).clamp_(max=p.shape[-1] - 1)
        return p.scatter_add(1, label, -torch.ones_like(noise))

    def _class_weights(self, like: Tensor) -> Tensor | None:
        return self._weights.to(like) if self.class_weights else None

    @cached_property
    def _weights(self) -> Tensor:
        """The weights of classes as a tensor, made once: a vocabulary has many."""
        with torch.inference_mode(False):
            return torch.tensor(self.class_weights, dtype=torch.float64, device="cpu")

    def _kept(self, targets: Tensor) -> Tensor:
        if self.ignore_index is None or targets.is_floating_point():
            return torch.ones(targets.shape[0], dtype=torch.bool, device=targets.device)
        return targets.ne(self.ignore_index)

    def _label_weights(self, targets: Tensor, like: Tensor) -> Float[Tensor, " r"]:
        """Class weight of each row's target before smoothing, zero where it is ignored."""
        kept = self._kept(targets)
        w = self._class_weights(like)
        if w is None:
            return kept.to(like.dtype)
        return targets.to(like) @ w if targets.is_floating_point() else w[targets.where(kept, 0)] * kept


@dataclass(frozen=True)
class NegativeLogLikelihood(CrossEntropy):
    """Minus the log-probability of the label, for outputs that are log-probabilities, as ``nn.NLLLoss``.

    It is linear in the outputs, so that its own Hessian is zero.  The log-softmax of log-probabilities is
    those log-probabilities: the loss equals cross-entropy on them, and has the same gradient and the same
    Gauss-Newton matrix in the parameters as cross-entropy on the logits behind them.  Refuses outputs that
    are no log-probabilities.
    """

    def example(self, examples: int, generator: torch.Generator) -> tuple[Any, Any]:
        f, targets = super().example(examples, generator)
        return f.log_softmax(-1), targets

    def require(self, outputs: Any, targets: Any) -> None:
        super().require(outputs, targets)
        require_log_probabilities(self.name, self.rows(outputs.detach()))

    @property
    def name(self) -> str:
        return "NLLLoss"
