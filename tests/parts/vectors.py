"""Vectors, contexts and records for tests of single parts."""

from __future__ import annotations

import torch
from torch import Tensor

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.precision.full import Full
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, Step, StepOutcome
from curvlab.protocols.line import Line
from curvlab.protocols.step import At
from curvlab.testing.lines import FunctionLine

DTYPE = torch.float64
LAYOUT = BlockLayout({"w": (3, 2), "b": (4,)})


def vector(seed: int = 0, layout: BlockLayout = LAYOUT, dtype: torch.dtype = DTYPE) -> BlockVector:
    g = torch.Generator().manual_seed(seed)
    return BlockVector(layout, torch.randn(layout.size, generator=g, dtype=dtype))


def context(step: int = 0, damping: float = 0.0) -> Context:
    return Context(step, damping, Full("float64"), torch.Generator().manual_seed(step))


def at(gradient: BlockVector, *, step: int = 0, lr: float = 1.0, theta: BlockVector | None = None) -> At:
    """Where a transform stands, at parameters ``theta`` (zero if not given)."""
    here = gradient.zeros_like() if theta is None else theta

    def add_theta(v: BlockVector, factor: float) -> None:
        v.add_(here, factor)

    return At(gradient, step, lr, add_theta, here.clone)


class Matrix(LinearOperator[BlockVector]):
    """A symmetric PSD matrix on flat vectors; counts products."""

    self_adjoint = True
    psd = True

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.count = matrix, 0

    def __matmul__(self, v: BlockVector) -> BlockVector:
        self.count += 1
        return BlockVector(v.layout, self.matrix @ v.flat)


def spd(seed: int = 0, d: int = LAYOUT.size, least: float = 0.1) -> Tensor:
    """A random positive definite matrix."""
    X = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=DTYPE)
    return X @ X.mT / d + least * torch.eye(d, dtype=DTYPE)


def passed(gradient: BlockVector, **more: object) -> Evaluation:
    return Evaluation(1, torch.zeros((), dtype=DTYPE), gradient, **more)  # type: ignore[arg-type]


def outcome(
    x: BlockVector, *, accepted: bool = True, ratio: float | None = None, gradient: BlockVector | None = None
) -> StepOutcome:
    return StepOutcome(passed(gradient or x), Solve(x), Step(x, 1.0, accepted), ratio)


class Bowl:
    """The loss ½ θᵀHθ − bᵀθ at θ = 0, and a line along an update of it."""

    def __init__(self, H: Tensor, b: BlockVector) -> None:
        self.H, self.b, self.trials = Matrix(H), b, 0

    @property
    def gradient(self) -> BlockVector:
        return self.b * -1.0

    def loss(self, update: BlockVector, alpha: float) -> float:
        self.trials += 1
        theta = update * -alpha
        return 0.5 * float(theta.dot(self.H @ theta)) - float(self.b.dot(theta))

    def line(self, update: BlockVector, *, rate: float = 1.0, damping: float = 0.0) -> Line:
        return FunctionLine(
            update=update,
            gradient=self.gradient,
            rate=rate,
            damping=damping,
            ggn=self.H,
            loss=0.0,
            losses=self.loss,
            gradients=self.differentiate,
        )

    def differentiate(self, update: BlockVector, alpha: float) -> tuple[float, BlockVector]:
        return self.loss(update, alpha), (self.H @ (update * -alpha)) - self.b
