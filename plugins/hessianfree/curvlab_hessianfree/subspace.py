"""A step rule that minimizes the loss over the space that a solve went through."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Count, Inside, Positive, check_bounds
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Needs
from curvlab.protocols.step import StepRule


@dataclass(frozen=True)
class Subspace(StepRule[None]):
    """BFGS over a coefficient per stretch of the solve's way (Vinyals and Povey 2012, arXiv 1111.4259).

    The iterates x_1 … x_K make K stretches ``u_k = x_k − x_{k−1}``, which are conjugate and sum to the
    solution.  Minimizes ``a ↦ L(θ − lr · Σ_k a_k u_k)`` on the acceptance sample from a = 0, by at most
    ``iterations`` steps of BFGS.  It begins with the curvature of the damped model, so that its first trial
    is near the solution, a = 1.  Where the loss is more curved than that along the first step, the curvature
    is raised by the same factor in all directions.  A step costs a gradient, or more where the loss must be
    tried again.
    A step that is no better than none is rejected.
    """

    chooses = True

    lr: Positive = 1.0
    iterations: Count = 8
    slope: Inside = 1e-4
    shrink: Inside = 0.5

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(gradients=self.tries)

    @property
    def tries(self) -> int:
        """The most gradients that one step computes: one or two a step of BFGS, some to find the scale."""
        return 2 * self.iterations + 8

    def rate(self, step: int) -> float:
        return self.lr

    def init(self, like: BlockVector) -> None:
        return None

    def search(self, state: None, line: Line, step: int) -> Step:
        space = _Space(line, self.lr * line.rate)
        a = torch.zeros(len(line.iterates), dtype=torch.float64, device="cpu")
        H = torch.diag(space.inverse_curvature())
        start, g = space.differentiate(a)
        loss, left = start, self.tries - 1
        for k in range(self.iterations):
            d = -(H @ g)
            slope, alpha, found, ahead = float(g @ d), 1.0 / self.shrink, math.inf, g
            while left and slope < 0 and not found <= loss + self.slope * alpha * slope:  # also for NaN
                alpha *= self.shrink
                found, ahead = space.differentiate(a + alpha * d)
                left -= 1
            if not found < loss:
                break
            s, y = alpha * d, ahead - g
            H = _updated(H if k else _scaled(H, s, y), s, y)
            a, loss, g = a + alpha * d, found, ahead
        return Step(space.combined(a), space.rate, accepted=loss < start)


@dataclass
class _Space:
    """The stretches of a solve's way, as combinations of its iterates."""

    line: Line
    rate: float

    def combined(self, a: Tensor) -> BlockVector:
        """``Σ_k a_k u_k = Σ_k (a_k − a_{k+1}) x_k``."""
        weights = a - torch.cat([a[1:], a.new_zeros(1)])
        first, *others = self.line.iterates
        total = first.x * float(weights[0])
        for iterate, w in zip(others, weights[1:].tolist(), strict=True):
            total.add_(iterate.x, w)
        return total

    def differentiate(self, a: Tensor) -> tuple[float, Tensor]:
        """Loss at θ − rate · Σ a_k u_k on the acceptance sample, and its gradient in a."""
        loss, gradient = self.line.differentiate(self.combined(a), self.rate, acceptance=True)
        along = torch.tensor(
            [float(i.x.dot(gradient)) for i in self.line.iterates], dtype=torch.float64, device="cpu"
        )
        along[1:] -= along[:-1].clone()
        return loss, along * -self.rate

    def inverse_curvature(self) -> Tensor:
        """That of the damped model along each stretch; 1 where that is not positive.

        Without the damping, rounding would choose the sign where the curvature sample bends nothing.
        """
        bends = torch.tensor(
            [i.curvature + self.line.damping * float(i.x.dot(i.x)) for i in self.line.iterates],
            dtype=torch.float64,
            device="cpu",
        )
        bends[1:] -= bends[:-1].clone()
        bends *= self.rate**2
        return torch.where(bends > 0, 1.0 / bends.clamp_min(torch.finfo(bends.dtype).tiny), 1.0)


def _scaled(H: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """An inverse Hessian times ``sᵀy / yᵀHy``, if that is less than 1.

    A model that is too flat along its first step is too flat in most directions.  Without this, every later
    step begins far too long and is halved until the loss falls, and each of them multiplies rounding.
    """
    sy, yHy = float(s @ y), float(y @ H @ y)
    return H * (sy / yHy) if 0 < sy < yHy else H


def _updated(H: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """The BFGS update of an inverse Hessian; itself where the pair has no positive curvature."""
    sy = float(s @ y)
    if not sy > 1e-10 * float(s.norm() * y.norm()):
        return H
    V = torch.eye(len(s), dtype=H.dtype, device=H.device) - torch.outer(s, y) / sy
    return V @ H @ V.mT + torch.outer(s, s) / sy
