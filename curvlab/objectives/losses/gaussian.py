"""The negative log-likelihood of real targets, their variance predicted too."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.row_loss import RowLoss
from curvlab.objectives.shapes import described, require_elementwise
from curvlab.protocols.bounds import Positive, check_bounds
from curvlab.protocols.loss import Over


@dataclass(frozen=True)
class GaussianNegativeLogLikelihood(RowLoss):
    """``½ [log v + (y − m)²/v]`` per coordinate, as ``nn.GaussianNLLLoss``, for outputs ``(m, v)``.

    The model returns two tensors of the targets' shape: the mean and the variance, or its logarithm.  The
    Hessian in both is indefinite (where a target is far from its mean), so that curvature is the Fisher
    information, its mean over targets drawn from the model: ``diag(1/v, 1/(2v²))``, in the logarithm
    ``diag(1/v, ½)``.  Gauss-Newton products are with that matrix.
    """

    over: Over = "mean"  #: coordinates of an example: mean or sum
    log_variance: bool = False  #: the second output is log v
    full: bool = False  #: add ½ log 2π
    eps: Positive = 1e-6  #: smallest variance

    curvature = "fisher"

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def name(self) -> str:
        return "GaussianNLLLoss"

    def prediction(self, outputs: Any) -> Any:
        return tuple(outputs) if isinstance(outputs, list) else outputs

    def example(self, examples: int, generator: torch.Generator) -> tuple[Any, Any]:
        shape, device = (examples, 2), generator.device
        m, s, y = (torch.randn(shape, dtype=torch.float64, generator=generator, device=device) for _ in "msy")
        return (m, s if self.log_variance else s.exp()), y

    def require(self, outputs: Any, targets: Any) -> None:
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            what = f"{self.name} takes a mean and a variance; the model's output is {described(outputs)}"
            raise ConfigError(Fault(what, hint="return (mean, variance), two tensors of the targets' shape"))
        for part in outputs:
            require_elementwise(self.name, part, targets)
        if not self.log_variance and bool((outputs[1] < 0).any()):
            raise ConfigError(
                Fault(
                    f"{self.name}: a variance of {float(outputs[1].min()):.3g}",
                    hint="return a positive variance (softplus, exp), or set log_variance = true",
                )
            )

    def rows(self, outputs: Any) -> Float[Tensor, "r c"]:
        return torch.cat([super(GaussianNegativeLogLikelihood, self).rows(f) for f in outputs], 1)

    def unrow(self, rows: Float[Tensor, "r c"], outputs: Any) -> Any:
        d = rows.shape[1] // 2
        return tuple(
            part.reshape(f.shape) for part, f in zip((rows[:, :d], rows[:, d:]), outputs, strict=True)
        )

    def target_rows(self, targets: Any) -> Any:
        return super().rows(targets)

    def terms(self, rows: Float[Tensor, "r c"], targets: Any) -> Float[Tensor, " r"]:
        m, v = self._apart(rows)
        each = F.gaussian_nll_loss(m, targets, v, full=self.full, eps=self.eps, reduction="none")
        return each.sum(-1) * self._kappa(rows)

    def factor(self, rows: Float[Tensor, "r c"], targets: Any) -> Iterator[Tensor]:
        root = self._fisher(rows).sqrt()
        for k in range(rows.shape[1]):
            v = torch.zeros_like(rows)
            v[:, k] = root[:, k]
            yield v

    def product(
        self, rows: Float[Tensor, "r c"], targets: Any, v: Float[Tensor, "r c"]
    ) -> Float[Tensor, "r c"]:
        return v * self._fisher(rows)

    def noise(
        self, rows: int, like: Float[Tensor, "_ c"], generator: torch.Generator
    ) -> Float[Tensor, "r _"]:
        shape = (rows, like.shape[1] // 2)
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)

    def sampled(
        self, rows: Float[Tensor, "r c"], targets: Any, noise: Float[Tensor, "r _"]
    ) -> Float[Tensor, "r c"]:
        v = self._variance(rows)
        of_variance = (1.0 - noise.square()) * (0.5 if self.log_variance else 0.5 / v)
        scale: float = self._kappa(rows) ** 0.5
        return torch.cat([-noise / v.sqrt(), of_variance], 1) * scale

    def _apart(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Means and variances, ``[r, d]`` each."""
        m, v = rows.chunk(2, 1)
        return m, v.exp() if self.log_variance else v

    def _variance(self, rows: Tensor) -> Tensor:
        return self._apart(rows)[1].clamp(min=self.eps)

    def _kappa(self, rows: Tensor) -> float:
        return 2.0 / rows.shape[1] if self.over == "mean" else 1.0

    def _fisher(self, rows: Float[Tensor, "r c"]) -> Float[Tensor, "r c"]:
        """The Fisher information of each row, which is diagonal."""
        v = self._variance(rows)
        of_variance = torch.full_like(v, 0.5) if self.log_variance else 0.5 / v.square()
        return torch.cat([1.0 / v, of_variance], 1) * self._kappa(rows)
