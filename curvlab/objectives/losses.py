"""Losses that know their own curvature.

A model's outputs are read as rows ``[r, c]``: r loss terms (an example, or a token of one), c
output coordinates.  Everything here is per row and un-weighted; the objective weights rows so that
the loss is ``mean_n ℓ_n``.  ``over`` says how the terms of *one example* are reduced: ``"mean"`` (torch's
``reduction="mean"``) or ``"sum"``.

| loss | ℓ_r | ∇²ℓ_r | S with S Sᵀ = ∇²ℓ_r | sampled v, E[v vᵀ] = ∇²ℓ_r |
|---|---|---|---|---|
| cross-entropy | −log p_y | diag(p) − p pᵀ | columns √p_k (e_k − p) | p − e_y', y' ~ p |
| squared error | κ ‖f − y‖², κ = 1/c or 1 | 2κ I | √(2κ) e_k | √(2κ) ε, ε ~ N(0, I) |
| binary | −κ Σ log p(y_k) | κ diag(p(1 − p)) | √(κ p_k(1 − p_k)) e_k | √κ (p − y'), y'_k ~ p_k |
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.loss import Loss, Over, count
from curvlab.objectives.opaque import ModelLoss, Opaque
from curvlab.objectives.shapes import require_elementwise, require_log_probabilities, require_logits


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Softmax cross-entropy on logits ``[n, c]`` or ``[n, c, *]``, for class indices or probabilities."""

    over: Over = "mean"
    label_smoothing: float = 0.0
    ignore_index: int | None = None
    class_weights: Tensor | None = None

    def require(self, outputs: Any, targets: Any) -> None:
        require_logits(self.name, outputs, targets, self.class_weights)

    @property
    def name(self) -> str:
        """What torch calls it."""
        return "CrossEntropyLoss"

    def rows(self, outputs: Tensor) -> Float[Tensor, "r c"]:
        return outputs if outputs.dim() == 2 else outputs.movedim(1, -1).flatten(0, -2)

    def unrow(self, rows: Float[Tensor, "r c"], outputs: Tensor) -> Tensor:
        if outputs.dim() == 2:
            return rows
        n, c, *rest = outputs.shape
        return rows.view(n, *rest, c).movedim(-1, 1)

    def target_rows(self, targets: Tensor) -> Tensor:
        return self.rows(targets) if targets.is_floating_point() else targets.flatten()

    def terms(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, " r"]:
        ignore = TORCH_IGNORES if self.ignore_index is None else self.ignore_index
        weight = None if self.class_weights is None else self.class_weights.to(rows)
        each = F.cross_entropy(
            rows, targets, weight, reduction="none", ignore_index=ignore, label_smoothing=self.label_smoothing
        )
        mass = None if weight is None else self.relative_weights(targets, rows)
        return each if mass is None else each / mass.masked_fill(mass == 0, 1.0)

    def mean(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, ""]:
        if self.over == "sum" or self.ignore_index is None:
            return super().mean(outputs, targets)
        # torch's own mean is by the same weights, in one kernel
        return F.cross_entropy(
            self.rows(outputs),
            self.target_rows(targets),
            None if self.class_weights is None else self.class_weights.to(outputs),
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
        )

    def relative_weights(self, targets: Tensor, like: Tensor) -> Float[Tensor, " r"] | None:
        if self.class_weights is None and (targets.is_floating_point() or self.ignore_index is None):
            return None
        hard = self._label_weights(targets, like)
        if self.class_weights is None or not self.label_smoothing:
            return hard
        # with soft targets t a row's Hessian is (Σ_c w_c t_c)(diag(p) − p pᵀ), and that sum is its weight
        everywhere = self.class_weights.to(like).mean() * self._kept(targets)
        return (1.0 - self.label_smoothing) * hard + self.label_smoothing * everywhere

    def mass(self, targets: Tensor, like: Tensor) -> Float[Tensor, ""]:
        # torch's mean over probabilities is over rows; over class indices it is weighted by the labels
        return count(targets) if targets.is_floating_point() else self._label_weights(targets, like).sum()

    def _kept(self, targets: Tensor) -> Tensor:
        if self.ignore_index is None or targets.is_floating_point():
            return torch.ones(targets.shape[0], dtype=torch.bool, device=targets.device)
        return targets.ne(self.ignore_index)

    def _label_weights(self, targets: Tensor, like: Tensor) -> Float[Tensor, " r"]:
        """Class weight of each row's target before smoothing, zero where it is ignored."""
        kept = self._kept(targets)
        if self.class_weights is None:
            return kept.to(like.dtype)
        w = self.class_weights.to(like)
        return targets.to(like) @ w if targets.is_floating_point() else w[targets.where(kept, 0)] * kept

    def columns(self, rows: Float[Tensor, "r c"]) -> int:
        return rows.shape[1]

    def column(self, rows: Float[Tensor, "r c"], k: int) -> Float[Tensor, "r c"]:
        p = rows.softmax(-1)
        v = -p
        v[:, k] += 1.0
        return p[:, k : k + 1].sqrt() * v

    def noise(self, shape: tuple[int, int], like: Tensor, generator: torch.Generator) -> Float[Tensor, "r _"]:
        return torch.rand((shape[0], 1), generator=generator, dtype=like.dtype, device=like.device)

    def sampled(self, rows: Float[Tensor, "r c"], noise: Tensor) -> Float[Tensor, "r c"]:
        p = rows.softmax(-1)
        label = (p.cumsum(-1) < noise).sum(-1, keepdim=True).clamp_(max=p.shape[-1] - 1)
        return p.scatter_add(1, label, -torch.ones_like(noise))

    def curved(
        self, rows: Float[Tensor, "r c"], targets: Tensor, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        p = rows.softmax(-1)
        pv = p * v
        return pv - p * pv.sum(-1, keepdim=True)


@dataclass(frozen=True)
class NegativeLogLikelihood(CrossEntropy):
    """Minus the log-probability of the label, for outputs that are log-probabilities ``[n, c, *]``.

    It is linear in the outputs, so that its own Hessian is zero.  The log-softmax of log-probabilities is
    those log-probabilities: the loss equals cross-entropy on them, and has the same gradient and the same
    Gauss-Newton matrix in the parameters as cross-entropy on the logits behind them.  Refuses outputs that
    are no log-probabilities.
    """

    def require(self, outputs: Any, targets: Any) -> None:
        super().require(outputs, targets)
        require_log_probabilities(self.name, self.rows(outputs.detach()))

    @property
    def name(self) -> str:
        return "NLLLoss"


class _Elementwise(Loss):
    """Losses that are a sum over output coordinates: rows are flattened coordinates, last axis kept."""

    name: str

    def require(self, outputs: Any, targets: Any) -> None:
        require_elementwise(self.name, outputs, targets)

    def rows(self, outputs: Tensor) -> Float[Tensor, "r c"]:
        if outputs.dim() == 1:
            return outputs.unsqueeze(-1)
        return outputs if outputs.dim() == 2 else outputs.flatten(0, -2)

    def unrow(self, rows: Float[Tensor, "r c"], outputs: Tensor) -> Tensor:
        return rows.view(outputs.shape)

    def target_rows(self, targets: Tensor) -> Tensor:
        return self.rows(targets if targets.is_floating_point() else targets.to(torch.get_default_dtype()))

    def columns(self, rows: Float[Tensor, "r c"]) -> int:
        return rows.shape[1]

    def kappa(self, rows: Tensor) -> float:
        """Weight of one coordinate in its row's loss."""
        return 1.0 / rows.shape[1] if self.over == "mean" else 1.0


@dataclass(frozen=True)
class MeanSquaredError(_Elementwise):
    """``κ ‖f − y‖²`` per row, without a factor ½, as ``nn.MSELoss``."""

    over: Over = "mean"
    name = "MSELoss"

    def terms(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, " r"]:
        return (rows - targets).square().sum(-1) * self.kappa(rows)

    def column(self, rows: Float[Tensor, "r c"], k: int) -> Float[Tensor, "r c"]:
        v = torch.zeros_like(rows)
        v[:, k] = math.sqrt(2.0 * self.kappa(rows))
        return v

    def noise(self, shape: tuple[int, int], like: Tensor, generator: torch.Generator) -> Float[Tensor, "r _"]:
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

    def sampled(self, rows: Float[Tensor, "r c"], noise: Tensor) -> Float[Tensor, "r c"]:
        return noise * math.sqrt(2.0 * self.kappa(rows))

    def curved(
        self, rows: Float[Tensor, "r c"], targets: Tensor, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        return v * (2.0 * self.kappa(rows))


@dataclass(frozen=True)
class BinaryCrossEntropy(_Elementwise):
    """Binary cross-entropy on logits, per coordinate; targets in [0, 1]."""

    over: Over = "mean"
    name = "BCEWithLogitsLoss"

    def terms(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, " r"]:
        each = F.binary_cross_entropy_with_logits(rows, targets, reduction="none")
        return each.sum(-1) * self.kappa(rows)

    def column(self, rows: Float[Tensor, "r c"], k: int) -> Float[Tensor, "r c"]:
        p = rows[:, k].sigmoid()
        v = torch.zeros_like(rows)
        v[:, k] = (self.kappa(rows) * p * (1.0 - p)).sqrt()
        return v

    def noise(self, shape: tuple[int, int], like: Tensor, generator: torch.Generator) -> Float[Tensor, "r _"]:
        return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)

    def sampled(self, rows: Float[Tensor, "r c"], noise: Tensor) -> Float[Tensor, "r c"]:
        p = rows.sigmoid()
        return (p - (noise < p).to(p.dtype)) * math.sqrt(self.kappa(rows))

    def curved(
        self, rows: Float[Tensor, "r c"], targets: Tensor, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        p = rows.sigmoid()
        return v * p * (1.0 - p) * self.kappa(rows)


#: what torch's functions and modules leave out of the mean unless told otherwise
TORCH_IGNORES = -100

_FUNCTIONS: dict[object, Callable[[Over], Loss]] = {
    F.cross_entropy: lambda over: CrossEntropy(over, ignore_index=TORCH_IGNORES),
    F.nll_loss: lambda over: NegativeLogLikelihood(over, ignore_index=TORCH_IGNORES),
    F.mse_loss: MeanSquaredError,
    F.binary_cross_entropy_with_logits: BinaryCrossEntropy,
}


def loss_of(criterion: object, reduction: str = "mean") -> Loss:
    """The loss that a torch criterion is; ``reduction`` is that of criteria that do not state theirs.

    ``None`` is the loss that the model returns itself.  Raises ``ConfigError`` for ``reduction="none"`` and
    for what is not callable.
    """
    if isinstance(criterion, Loss):
        return criterion
    if criterion is None:
        return ModelLoss("sum" if reduction == "sum" else "mean")
    reduction = getattr(criterion, "reduction", reduction)
    if reduction not in ("mean", "sum", "mean-tokens"):
        raise ConfigError(Fault(f"the criterion has reduction = {reduction!r}", hint='use "mean" or "sum"'))
    over: Over = "sum" if reduction == "sum" else "mean"
    if type(criterion) is nn.CrossEntropyLoss:
        return CrossEntropy(over, criterion.label_smoothing, criterion.ignore_index, criterion.weight)
    if type(criterion) is nn.NLLLoss:
        return NegativeLogLikelihood(over, 0.0, criterion.ignore_index, criterion.weight)
    if type(criterion) is nn.MSELoss:
        return MeanSquaredError(over)
    weighed = isinstance(criterion, nn.BCEWithLogitsLoss) and (
        criterion.weight is not None or criterion.pos_weight is not None
    )
    if type(criterion) is nn.BCEWithLogitsLoss and not weighed:
        return BinaryCrossEntropy(over)
    if not callable(criterion):
        what = f"the criterion is of type {type(criterion).__name__}; expected a callable"
        raise ConfigError(Fault(what, hint="pass a loss of torch.nn, or a function of outputs and targets"))
    for function, known in _FUNCTIONS.items():
        if criterion is function:  # a callable record may have no hash to look it up by
            return known(over)
    return Opaque(criterion, over)
