"""Losses: torch's values, and curvature that autograd confirms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError
from curvlab.objectives.losses import (
    BinaryCrossEntropy,
    CriterionLoss,
    CrossEntropy,
    GaussianNegativeLogLikelihood,
    Huber,
    MeanSquaredError,
    NegativeLogLikelihood,
    PoissonNegativeLogLikelihood,
    SmoothL1,
    loss_of,
)
from curvlab.objectives.row_loss import RowLoss
from curvlab.protocols.loss import Loss
from curvlab.testing.asserts import assert_close


def outputs(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def classes(*shape: int, ignored: bool = False) -> Tensor:
    y = torch.randint(0, 4, shape, generator=torch.Generator().manual_seed(3))
    if ignored:
        y.view(-1)[::3] = -100
    return y


def weights_of(loss: Loss, f: Tensor, y: Tensor) -> Any:
    """Of the terms of a whole batch."""
    total, n = loss.total_weight(y, f), f.shape[0]
    return loss.term_weights(y, n, f, lambda: n / total)  # type: ignore[operator]


WEIGHTS = torch.tensor([0.5, 2.0, 1.0, 0.25], dtype=torch.float64)
CE, MSE, BCE = nn.CrossEntropyLoss, nn.MSELoss, nn.BCEWithLogitsLoss

CRITERIA: list[tuple[str, Callable[..., nn.Module], Tensor, Tensor]] = [
    ("classes", CE, outputs(6, 4), classes(6)),
    ("classes, some ignored", CE, outputs(6, 4), classes(6, ignored=True)),
    ("classes, ignoring class 1", lambda **k: CE(ignore_index=1, **k), outputs(6, 4), classes(6)),
    ("weighted classes", lambda **k: CE(WEIGHTS, **k), outputs(6, 4), classes(6)),
    ("weighted classes, some ignored", lambda **k: CE(WEIGHTS, **k), outputs(6, 4), classes(6, ignored=True)),
    ("smoothed classes", lambda **k: CE(label_smoothing=0.1, **k), outputs(6, 4), classes(6)),
    ("class probabilities", CE, outputs(6, 4), outputs(6, 4, seed=1).softmax(1)),
    ("smoothed and weighted", lambda **k: CE(WEIGHTS, label_smoothing=0.1, **k), outputs(6, 4), classes(6)),
    ("weighted probabilities", lambda **k: CE(WEIGHTS, **k), outputs(6, 4), outputs(6, 4, seed=1).softmax(1)),
    (
        "smoothed and weighted probabilities",
        lambda **k: CE(WEIGHTS, label_smoothing=0.1, **k),
        outputs(6, 4),
        outputs(6, 4, seed=1).softmax(1),
    ),
    (
        "smoothed and weighted, some ignored",
        lambda **k: CE(WEIGHTS, label_smoothing=0.1, **k),
        outputs(6, 4),
        classes(6, ignored=True),
    ),
    ("classes of a sequence", CE, outputs(3, 4, 5), classes(3, 5)),
    ("classes of pixels", CE, outputs(2, 4, 3, 2), classes(2, 3, 2, ignored=True)),
    ("class probabilities of a sequence", CE, outputs(3, 4, 5), outputs(3, 4, 5, seed=1).softmax(1)),
    ("squared error", MSE, outputs(6, 4), outputs(6, 4, seed=1)),
    ("squared error of numbers", MSE, outputs(6), outputs(6, seed=1)),
    ("squared error of a sequence", MSE, outputs(3, 5, 4), outputs(3, 5, 4, seed=1)),
    ("binary", BCE, outputs(6, 4), outputs(6, 4, seed=1).sigmoid()),
    ("binary of images", BCE, outputs(2, 3, 4), outputs(2, 3, 4, seed=1).sigmoid()),
    ("absolute error", nn.L1Loss, outputs(6, 4), outputs(6, 4, seed=1)),
    ("positives weighted", lambda **k: BCE(pos_weight=WEIGHTS, **k), outputs(6, 4), outputs(6, 4).sigmoid()),
    ("examples weighted", lambda **k: BCE(WEIGHTS, **k), outputs(6, 4), outputs(6, 4, seed=1).sigmoid()),
    ("Huber", lambda **k: nn.HuberLoss(delta=0.7, **k), outputs(6, 4), outputs(6, 4, seed=1)),
    ("smooth L1", lambda **k: nn.SmoothL1Loss(beta=0.7, **k), outputs(6, 3, 2), outputs(6, 3, 2, seed=1)),
    ("smooth L1 without squares", lambda **k: nn.SmoothL1Loss(beta=0.0, **k), outputs(6), outputs(6, seed=1)),
    ("counts", nn.PoissonNLLLoss, outputs(6, 4), classes(6, 4).double()),
    ("counts, full", lambda **k: nn.PoissonNLLLoss(full=True, **k), outputs(6, 4), classes(6, 4).double()),
    (
        "counts, by rates",
        lambda **k: nn.PoissonNLLLoss(log_input=False, **k),
        outputs(6, 4).exp(),
        classes(6, 4).double(),
    ),
]
#: known by their values alone
BY_VALUE = ("absolute error", "examples weighted")
KNOWN = [c for c in CRITERIA if c[0] not in BY_VALUE]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("make", "f", "y"), [c[1:] for c in CRITERIA], ids=[c[0] for c in CRITERIA])
def test_the_value_is_torchs_and_for_a_sum_its_mean_over_examples(
    make: Callable[..., nn.Module], f: Tensor, y: Tensor, reduction: str
) -> None:
    criterion = make(reduction=reduction)
    torchs = criterion(f, y) / (f.shape[0] if reduction == "sum" else 1)
    torch.testing.assert_close(loss_of(criterion).mean(f, y), torchs)


@pytest.mark.parametrize(("make", "f", "y"), [c[1:] for c in KNOWN], ids=[c[0] for c in KNOWN])
def test_a_mean_in_one_kernel_is_that_of_the_weighted_rows(
    make: Callable[..., nn.Module], f: Tensor, y: Tensor
) -> None:
    loss, f = loss_of(make()), f.clone().requires_grad_()
    assert isinstance(loss, RowLoss)
    fused, weighed = loss.mean(f, y), RowLoss.mean(loss, f, y)
    assert_close(fused, weighed, dimension=f.numel())
    gradients = [torch.autograd.grad(value, f)[0] for value in (fused, weighed)]
    assert_close(*gradients, dimension=f.numel())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("make", "f", "y"), [c[1:] for c in CRITERIA], ids=[c[0] for c in CRITERIA])
def test_products_are_with_the_hessian_of_the_whole(
    make: Callable[..., nn.Module], f: Tensor, y: Tensor, reduction: str
) -> None:
    criterion, v = make(reduction=reduction), outputs(*f.shape, seed=2)
    loss = loss_of(criterion)
    mine = loss.hessian_product(f, y, weights_of(loss, f, y), v)
    _, truth = torch.autograd.functional.hvp(lambda at: loss.mean(at, y) * f.shape[0], f, v)
    torch.testing.assert_close(mine, truth)


def test_class_labels_are_sampled_with_the_models_probabilities() -> None:
    f, m = outputs(1, 4).repeat(40_000, 1), 40_000
    loss = CrossEntropy()
    v = loss.sampled(f, None, loss.noise(m, f, torch.Generator().manual_seed(0)))
    p = f[0].softmax(0)
    drawn = (f.softmax(1) - v).mean(0)  # one-hot labels
    assert bool(((drawn - p).abs() <= 5 * (p * (1 - p) / m).sqrt()).all())


def test_rows_come_back_in_the_shape_of_the_outputs() -> None:
    for loss, f in [
        (CrossEntropy(), outputs(3, 4, 5)),
        (CrossEntropy(), outputs(2, 4, 3, 2)),
        (MeanSquaredError(), outputs(6)),
        (BinaryCrossEntropy(), outputs(3, 5, 4)),
        (CrossEntropy(classes="last"), outputs(3, 5, 4)),
    ]:
        assert torch.equal(loss.unrow(loss.rows(f), f), f)


@pytest.mark.parametrize(
    ("criterion", "expected"),
    [
        (nn.CrossEntropyLoss(), CrossEntropy(ignore_index=-100)),
        (nn.CrossEntropyLoss(reduction="sum"), CrossEntropy("sum", ignore_index=-100)),
        (nn.CrossEntropyLoss(label_smoothing=0.1), CrossEntropy(label_smoothing=0.1, ignore_index=-100)),
        (nn.NLLLoss(), NegativeLogLikelihood(ignore_index=-100)),
        (nn.NLLLoss(reduction="sum", ignore_index=1), NegativeLogLikelihood("sum", ignore_index=1)),
        (F.nll_loss, NegativeLogLikelihood(ignore_index=-100)),
        (nn.MSELoss(), MeanSquaredError()),
        (nn.MSELoss(reduction="sum"), MeanSquaredError("sum")),
        (nn.CrossEntropyLoss(WEIGHTS), CrossEntropy(ignore_index=-100, class_weights=(0.5, 2.0, 1.0, 0.25))),
        (nn.HuberLoss(delta=2.0), Huber(delta=2.0)),
        (nn.SmoothL1Loss(reduction="sum", beta=0.5), SmoothL1("sum", 0.5)),
        (nn.PoissonNLLLoss(full=True), PoissonNegativeLogLikelihood(full=True)),
        (nn.GaussianNLLLoss(eps=1e-4), GaussianNegativeLogLikelihood(eps=1e-4)),
        (BCE(pos_weight=WEIGHTS), BinaryCrossEntropy(positive_weights=(0.5, 2.0, 1.0, 0.25))),
        (F.huber_loss, Huber()),
        (F.smooth_l1_loss, SmoothL1()),
        (F.poisson_nll_loss, PoissonNegativeLogLikelihood()),
        (nn.BCEWithLogitsLoss(reduction="sum"), BinaryCrossEntropy("sum")),
        (F.cross_entropy, CrossEntropy(ignore_index=-100)),
        (F.mse_loss, MeanSquaredError()),
        (F.binary_cross_entropy_with_logits, BinaryCrossEntropy()),
        (MeanSquaredError("sum"), MeanSquaredError("sum")),
        (F.l1_loss, CriterionLoss(F.l1_loss)),
    ],
    ids=lambda x: getattr(x, "__name__", type(x).__name__),
)
def test_a_criterion_is_known_by_what_it_is(criterion: Any, expected: Loss) -> None:
    assert loss_of(criterion) == expected


class Half(nn.MSELoss):
    """Not the squared error although it is a kind of it."""

    def forward(self, f: Tensor, y: Tensor) -> Tensor:
        return 0.5 * super().forward(f, y)


@dataclass
class Unhashable:
    """A criterion as a mutable record, which cannot be hashed."""

    weight: float = 2.0

    def __call__(self, f: Tensor, y: Tensor) -> Tensor:
        return self.weight * F.mse_loss(f, y)


OTHERS = [Half(), Unhashable(), BCE(WEIGHTS), BCE(pos_weight=WEIGHTS.view(2, 2)), nn.L1Loss()]


@pytest.mark.parametrize("criterion", OTHERS, ids=str)
def test_what_is_not_known_exactly_is_known_by_its_value(criterion: Any) -> None:
    assert loss_of(criterion) == CriterionLoss(criterion)


def test_reduction_speaks_for_functions_only() -> None:
    assert loss_of(F.mse_loss, "sum") == MeanSquaredError("sum")
    assert loss_of(F.cross_entropy, "mean-tokens") == CrossEntropy(ignore_index=-100)
    assert loss_of(nn.MSELoss(), "sum") == MeanSquaredError()


@pytest.mark.parametrize(
    "criterion", [CE(reduction="none"), MSE(reduction="none"), nn.L1Loss(reduction="none")]
)
def test_reduction_none_is_refused_in_words(criterion: nn.Module) -> None:
    with pytest.raises(ConfigError, match=r"reduction = 'none'\n  use \"mean\" or \"sum\""):
        loss_of(criterion)
    with pytest.raises(ConfigError, match="reduction = 'none'"):
        loss_of(F.mse_loss, "none")


def test_what_cannot_be_called_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="the criterion is of type int"):
        loss_of(3)


def test_a_criterion_that_returns_no_scalar_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match=r"returned shape \(6, 4\)"):
        CriterionLoss(lambda f, y: (f - y).abs()).mean(outputs(6, 4), outputs(6, 4))
