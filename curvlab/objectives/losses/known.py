"""Which loss a torch criterion is."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.losses.binary import BinaryCrossEntropy
from curvlab.objectives.losses.criterion import CriterionLoss
from curvlab.objectives.losses.cross_entropy import TORCH_IGNORES, CrossEntropy, NegativeLogLikelihood
from curvlab.objectives.losses.gaussian import GaussianNegativeLogLikelihood
from curvlab.objectives.losses.model_loss import ModelLoss
from curvlab.objectives.losses.poisson import PoissonNegativeLogLikelihood
from curvlab.objectives.losses.regression import Huber, MeanSquaredError, SmoothL1
from curvlab.protocols.loss import Loss, Over

#: torch's functions with their defaults
_FUNCTIONS: dict[object, Callable[[Over], Loss]] = {
    F.cross_entropy: lambda over: CrossEntropy(over, ignore_index=TORCH_IGNORES),
    F.nll_loss: lambda over: NegativeLogLikelihood(over, ignore_index=TORCH_IGNORES),
    F.mse_loss: MeanSquaredError,
    F.huber_loss: Huber,
    F.smooth_l1_loss: SmoothL1,
    F.binary_cross_entropy_with_logits: BinaryCrossEntropy,
    F.poisson_nll_loss: PoissonNegativeLogLikelihood,
}

#: an objective is made for every batch: settings that were seen are not checked again
_cross_entropy = lru_cache(maxsize=64)(CrossEntropy)

#: torch's modules, of this class exactly; ``None`` for those whose settings are not ours
_MODULES: dict[type, Callable[[Any, Over], Loss | None]] = {
    nn.CrossEntropyLoss: lambda c, over: _cross_entropy(
        over, c.label_smoothing, c.ignore_index, _numbers(c.weight)
    ),
    nn.NLLLoss: lambda c, over: NegativeLogLikelihood(over, 0.0, c.ignore_index, _numbers(c.weight)),
    nn.MSELoss: lambda c, over: MeanSquaredError(over),
    nn.HuberLoss: lambda c, over: Huber(over, c.delta),
    nn.SmoothL1Loss: lambda c, over: SmoothL1(over, c.beta),
    nn.PoissonNLLLoss: lambda c, over: PoissonNegativeLogLikelihood(over, c.log_input, c.full, c.eps),
    nn.GaussianNLLLoss: lambda c, over: GaussianNegativeLogLikelihood(over, full=c.full, eps=c.eps),
    nn.BCEWithLogitsLoss: lambda c, over: _binary(c, over),
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
    if type(criterion) in _MODULES:
        known = _MODULES[type(criterion)](criterion, over)
        if known is not None:
            return known
    if not callable(criterion):
        what = f"the criterion is of type {type(criterion).__name__}; expected a callable"
        raise ConfigError(Fault(what, hint="pass a loss of torch.nn, or a function of outputs and targets"))
    for function, made in _FUNCTIONS.items():
        if criterion is function:  # a callable record may have no hash to look it up by
            return made(over)
    return CriterionLoss(criterion, over)


def _binary(criterion: nn.BCEWithLogitsLoss, over: Over) -> BinaryCrossEntropy | None:
    """``None`` for weights of single examples, which no other batch has."""
    q = criterion.pos_weight
    if criterion.weight is not None or (q is not None and q.dim() > 1):
        return None
    return BinaryCrossEntropy(over, (), _numbers(q))


def _numbers(weights: Tensor | None) -> tuple[float, ...]:
    return () if weights is None else tuple(weights.detach().double().reshape(-1).tolist())
