"""Losses of real targets: squared error, Huber, smooth L1."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from curvlab.objectives.losses.elementwise import ElementwiseLoss
from curvlab.protocols.bounds import NotNegative, Positive, check_bounds
from curvlab.protocols.loss import Over


@dataclass(frozen=True)
class MeanSquaredError(ElementwiseLoss):
    """``κ ‖f − y‖²`` per row, without a factor ½, as ``nn.MSELoss``.

    Model labels are drawn from N(f, ½ I), of which it is the negative log-likelihood.
    """

    over: Over = "mean"  #: coordinates of an example: mean or sum

    @property
    def name(self) -> str:
        return "MSELoss"

    def each(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, "r c"]:
        return (rows - targets).square()

    def second(self, rows: Float[Tensor, "r c"], targets: Tensor) -> float | Tensor:
        return 2.0

    def noise(
        self, rows: int, like: Float[Tensor, "_ c"], generator: torch.Generator
    ) -> Float[Tensor, "r _"]:
        shape = (rows, like.shape[1])
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


@dataclass(frozen=True)
class Huber(ElementwiseLoss):
    """``½ (f − y)²`` up to ``delta``, beyond it ``delta (|f − y| − ½ delta)``, as ``nn.HuberLoss``.

    Its Hessian is 1 up to ``delta`` and 0 beyond: positive semi-definite, and of outliers there is none.
    Model labels are not drawn, because it is no likelihood of use: vectors are the root of the Hessian times
    random signs.
    """

    over: Over = "mean"  #: coordinates of an example: mean or sum
    delta: Positive = 1.0  #: where the loss turns from squares to lines

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def name(self) -> str:
        return "HuberLoss"

    def each(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, "r c"]:
        return F.huber_loss(rows, targets, reduction="none", delta=self.delta)

    def second(self, rows: Float[Tensor, "r c"], targets: Tensor) -> float | Tensor:
        return (rows - targets).abs().lt(self.delta).to(rows.dtype)


@dataclass(frozen=True)
class SmoothL1(ElementwiseLoss):
    """Huber's loss over ``beta``, as ``nn.SmoothL1Loss``: ``½ (f − y)²/beta``, beyond ``|f − y| − ½ beta``.

    Its Hessian is 1/beta up to ``beta`` and 0 beyond, and zero everywhere for ``beta = 0``, the absolute
    error.
    """

    over: Over = "mean"  #: coordinates of an example: mean or sum
    beta: NotNegative = 1.0  #: where the loss turns from squares to lines

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def name(self) -> str:
        return "SmoothL1Loss"

    def each(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, "r c"]:
        return F.smooth_l1_loss(rows, targets, reduction="none", beta=self.beta)

    def second(self, rows: Float[Tensor, "r c"], targets: Tensor) -> float | Tensor:
        if self.beta == 0.0:
            return 0.0
        return (rows - targets).abs().lt(self.beta).to(rows.dtype) / self.beta
