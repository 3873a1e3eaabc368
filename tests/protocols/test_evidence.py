"""What a step rule may ask of the way ahead: slopes and predictions of the quadratic model."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.testing.lines import FunctionLine
from curvlab.testing.problems import normal

LAYOUT = BlockLayout({"w": (2, 2), "b": (2,)})


class Matrix(LinearOperator[BlockVector]):
    """A dense symmetric matrix."""

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return BlockVector(v.layout, self.matrix @ v.flat)


X = normal(8, 6, seed=0)
G, g, u = X.mT @ X, normal(6, seed=1), normal(6, seed=2)


def line(loss: float = 3.0, change: float | None = None) -> Line:
    """On the quadratic of gradient g and curvature G, or with a ``change`` that is always the same."""

    def loss_of(update: BlockVector, alpha: float) -> float:
        d = -alpha * update.flat
        return loss + (float(g @ d + 0.5 * d @ G @ d) if change is None else change)

    return FunctionLine(
        update=BlockVector(LAYOUT, u.clone()),
        gradient=BlockVector(LAYOUT, g.clone()),
        damping=0.1,
        ggn=Matrix(G),
        loss=loss,
        losses=loss_of,
    )


def test_the_slope_is_the_derivative_of_the_loss_along_the_step() -> None:
    h = 1e-6
    ahead = line()
    numeric = (ahead.loss_of(ahead.update, h) - ahead.loss_of(ahead.update, -h)) / (2 * h)
    assert ahead.slope == pytest.approx(numeric, rel=1e-8)
    assert ahead.slope == pytest.approx(-float(g @ u))


@pytest.mark.parametrize("alpha", [0.1, 1.0, -2.0])
def test_the_prediction_is_of_the_undamped_quadratic_model(alpha: float) -> None:
    ahead = line()
    assert ahead.predicted(ahead.update, alpha) == pytest.approx(ahead.loss_of(ahead.update, alpha) - 3.0)


def test_the_ratio_is_one_where_the_model_is_the_loss() -> None:
    ahead = line()
    assert ahead.ratio(Step(ahead.update, 0.4)) == pytest.approx(1.0, abs=1e-12)
    assert line(change=-1.0).ratio(Step(ahead.update, 0.4)) == pytest.approx(
        -1.0 / ahead.predicted(ahead.update, 0.4)
    )


def test_a_ratio_of_what_is_not_finite_or_not_predicted_is_nan() -> None:
    ahead = line(change=math.nan)
    assert math.isnan(ahead.ratio(Step(ahead.update, 0.4)))
    still = line(change=-1.0)
    assert math.isnan(still.ratio(Step(BlockVector(LAYOUT, torch.zeros(6).double()), 0.4)))
