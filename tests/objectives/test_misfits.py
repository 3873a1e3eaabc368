"""Outputs, targets and batches that a loss does not take are refused in words, wherever they come up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError
from curvlab.objectives.losses import loss_of
from curvlab.objectives.samples import IndexedExamples
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from tests.objectives.asking import ask, layers_of, normal

MSE, BCE, CE, NLL = nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.CrossEntropyLoss(), nn.NLLLoss()


def longs(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


@pytest.mark.parametrize(
    ("criterion", "f", "y", "hint"),
    [
        (MSE, normal(6, 1), normal(6), r"targets.view\(6, 1\)"),
        (F.mse_loss, normal(6), normal(6, 1), r"outputs of shape \(6, 1\)"),
        (MSE, normal(6, 2, 3), normal(6, 3), r"targets of shape \(6, 2, 3\)"),
        (MSE, normal(1)[0], normal(1)[0], r"outputs of shape \(n, …\)"),
        (BCE, normal(6, 1), normal(6).sigmoid(), r"targets.view\(6, 1\)"),
        (BCE, normal(6, 1), longs(6, 1), r"targets.float\(\)"),
        (CE, normal(6, 5, 3), longs(6, 5), r"outputs.movedim\(-1, 1\)"),
        (CE, normal(6, 5, 3), longs(30), r"targets of shape \(6, 3\), or reshape"),
        (CE, normal(6, 3), longs(6, 1), r"targets.view\(6,\)"),
        (CE, normal(6, 3), normal(6, 2), r"targets of shape \(6, 3\)"),
        (CE, normal(6, 3), longs(6).int(), r"targets.long\(\)"),
        (CE, normal(3), longs(), r"outputs of shape \(n, classes\)"),
        (nn.CrossEntropyLoss(torch.ones(4)), normal(6, 3), longs(6), "for each of the 3 classes"),
        (CE, (normal(6, 3), normal(6)), longs(6), "write a criterion that selects them"),
        (CE, normal(6, 3), (longs(6),), "write a criterion that selects them"),
        (NLL, normal(6, 3), longs(6), "nn.LogSoftmax"),
    ],
)
def test_what_does_not_fit_is_refused_with_both_shapes_and_a_remedy(
    criterion: Any, f: Any, y: Any, hint: str
) -> None:
    with pytest.raises(ConfigError, match=hint) as caught:
        loss_of(criterion).require(f, y)
    said = str(caught.value)
    if "and targets of shape" in said:
        assert str(tuple(f.shape)) in said
        assert str(tuple(y.shape)) in said


@pytest.mark.parametrize(
    ("criterion", "f", "y"),
    [
        (MSE, normal(6), normal(6)),
        (MSE, normal(6, 2), longs(6, 2)),
        (BCE, normal(6, 2), normal(6, 2).sigmoid()),
        (CE, normal(6, 3), longs(6)),
        (CE, normal(6, 3, 5), longs(6, 5)),
        (CE, normal(6, 3, 3), longs(6, 3)),
        (CE, normal(6, 3, 5), normal(6, 3, 5).softmax(1)),
        (NLL, normal(6, 3, 5).log_softmax(1), longs(6, 5)),
        (NLL, normal(6, 3).float().log_softmax(1), longs(6)),
        (NLL, normal(6, 3).log_softmax(1) * torch.nan, longs(6)),  # for the step to find
    ],
)
def test_what_torch_takes_without_broadcasting_passes_and_has_torchs_value(
    criterion: Any, f: Tensor, y: Tensor
) -> None:
    loss_of(criterion).require(f, y)
    mine = loss_of(criterion).mean(f, y)
    torch.testing.assert_close(mine, criterion(f, y), equal_nan=True, check_dtype=False)


def test_gradient_trial_loss_trial_gradient_and_product_refuse_alike() -> None:
    model, x, y = nn.Linear(4, 1).double(), normal(6, 4), normal(6)
    good = objective(model, MSE, x, y.unsqueeze(1))
    bad, blocks = objective(model, MSE, x, y), layers_of(model)
    at = {n: p.detach() for n, p in model.named_parameters()}
    other = SupervisedObjective(model, loss_of(MSE), x, y.unsqueeze(1), curvature=(x, y))
    product = ask(other, Needs(products=1), blocks).ggn
    v = ask(good, GRADIENT_ONLY, blocks).gradient
    for evaluate in (
        lambda: ask(bad, GRADIENT_ONLY, blocks),
        bad.loss,
        lambda: bad.differentiate(at),
        bad,
        lambda: product @ v,
    ):
        with pytest.raises(ConfigError, match=r"outputs of shape \(6, 1\) and targets of shape \(6,\)"):
            evaluate()


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_batch_without_examples_is_refused_in_words(micro_batch: int | None) -> None:
    model, x, y = nn.Linear(4, 3).double(), normal(6, 4), longs(6)
    with pytest.raises(ConfigError, match="no examples"):
        objective(model, CE, x[:0], y[:0], micro_batch=micro_batch)
    with pytest.raises(ConfigError, match="no examples"):
        SupervisedObjective(model, loss_of(CE), x, y, acceptance=(x[:0], y[:0]))

    class Pool:
        def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            return x[indices], y[indices]

        def __len__(self) -> int:
            return 6

    with pytest.raises(ConfigError, match="no examples"):
        SupervisedObjective(model, loss_of(CE), IndexedExamples(Pool(), longs(0)))


def test_tensors_that_do_not_agree_on_the_examples_are_refused_in_words() -> None:
    model = nn.Linear(4, 3).double()
    with pytest.raises(ConfigError, match=r"number of examples is unclear: .* 6 entries, .* 4 and 5"):
        objective(model, lambda f, t: f.sum(), normal(6, 4), (normal(4), normal(5)))
