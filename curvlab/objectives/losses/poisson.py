"""The negative log-likelihood of counts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.losses.elementwise import ElementwiseLoss
from curvlab.protocols.bounds import NotNegative, check_bounds
from curvlab.protocols.loss import Over


@dataclass(frozen=True)
class PoissonNegativeLogLikelihood(ElementwiseLoss):
    """``eᶠ − y f``, as ``nn.PoissonNLLLoss``, for counts y; in the rate, ``f − y log(f + eps)``.

    In the log-rate f it is a natural exponential family: its Hessian eᶠ is the Fisher information, and does
    not depend on the counts.  In the rate it is ``y/(f + eps)²``.  Sampled vectors are the root of the
    Hessian times random signs: the second moment of gradients at drawn counts, without their variance.
    """

    over: Over = "mean"  #: coordinates of an example: mean or sum
    log_input: bool = True  #: outputs are logarithms of rates
    full: bool = False  #: add Stirling's approximation of log y!
    eps: NotNegative = 1e-8  #: added to rates before their logarithm

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def name(self) -> str:
        return "PoissonNLLLoss"

    def example(self, examples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        f = torch.randn(examples, 3, dtype=torch.float64, generator=generator, device=generator.device)
        counts = torch.randint(0, 5, f.shape, generator=generator, device=generator.device).double()
        return (f if self.log_input else f.exp()), counts

    def each(self, rows: Float[Tensor, "r c"], targets: Tensor) -> Float[Tensor, "r c"]:
        return F.poisson_nll_loss(
            rows, targets, log_input=self.log_input, full=self.full, eps=self.eps, reduction="none"
        )

    def second(self, rows: Float[Tensor, "r c"], targets: Tensor) -> float | Tensor:
        if self.log_input:
            return rows.exp()
        if bool((targets < 0).any()):
            raise ConfigError(
                Fault(f"{self.name}: a count of {float(targets.min()):g}", hint="give counts of at least 0")
            )
        return targets / (rows + self.eps).square()
