"""Samples in micro-batches: what is computed is that of one batch, weights and ragged ends included."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from curvlab.errors import ConfigError
from curvlab.objectives.losses import CrossEntropy, loss_of
from curvlab.objectives.samples import IndexedExamples, MicroBatches
from curvlab.objectives.supervised import SupervisedObjective
from curvlab.protocols.needs import Needs
from curvlab.testing.asserts import assert_close, assert_same
from curvlab.testing.problems import Problem, supervised_losses
from tests.objectives.asking import ask, normal

LOSSES = supervised_losses(7)
ALL = Needs(products=1, losses=1, gradients=1, variance=True)


@dataclass(frozen=True)
class Pool:
    """Examples that are known by index alone."""

    inputs: Tensor
    targets: Tensor

    def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.targets[indices]

    def __len__(self) -> int:
        return len(self.inputs)


def whole(problem: Problem, model: nn.Module) -> SupervisedObjective:
    return problem.objective(model)


def tensors(problem: Problem, model: nn.Module) -> SupervisedObjective:
    return problem.objective(model, micro_batch=3)


def chosen(problem: Problem, model: nn.Module) -> SupervisedObjective:
    """The same examples, in a pool that holds each of them somewhere else and others beside them."""
    order = torch.tensor([4, 0, 6, 2, 1, 5, 3])
    back = torch.argsort(order)
    pool = Pool(
        torch.cat([problem.inputs[order], problem.inputs]),
        torch.cat([problem.targets[order], problem.targets]),
    )
    loss = loss_of(problem.criterion)
    return SupervisedObjective(model, loss, IndexedExamples(pool, back), micro_batch=3)


@pytest.mark.parametrize("cut", [tensors, chosen])
@pytest.mark.parametrize("problem", LOSSES, ids=str)
def test_loss_gradient_product_and_variance_of_ragged_micro_batches_are_those_of_one_batch(
    problem: Problem, cut: Callable[[Problem, nn.Module], SupervisedObjective]
) -> None:
    """Seven examples by threes."""
    model = problem.model()
    blocks = problem.blocks(model)
    one, many = whole(problem, model), cut(problem, model)
    a, b = (ask(o, ALL, blocks, step=0) for o in (one, many))
    assert a.examples == b.examples == 7
    assert_close(b.loss, a.loss, what="loss")
    assert_close(many.loss(), a.loss, what="trial loss")
    assert_same(b.gradient, a.gradient, what="gradient")
    assert a.ggn is not None
    assert b.ggn is not None
    v = a.gradient.clone()
    v.flat.copy_(normal(v.layout.size, seed=3))
    assert_same(b.ggn @ v, a.ggn @ v, what="product")
    assert a.variance is not None
    assert b.variance is not None
    assert_close(b.variance.total, a.variance.total, dimension=100, what="total")
    assert_close(b.variance.along, a.variance.along, dimension=100, what="along")
    there = {n: p.detach() + 0.1 for n, p in model.named_parameters()}
    (value, g), (expected, h) = many.differentiate(there), one.differentiate(there)
    assert_close(value, expected, what="trial loss")
    for name, expected in h.items():
        assert_close(g[name], expected, dimension=7, scale=float(a.gradient.norm()), what=name)


def test_weights_of_the_chunks_add_up_to_those_of_the_whole() -> None:
    loss = CrossEntropy(ignore_index=-100, class_weights=(1.0, 2.0, 5.0))
    y = torch.tensor([0, -100, 2, 1, -100, -100, 2])
    x = normal(7, 3)
    total = loss.total_weight(y, x)
    assert total is not None
    expected = loss.term_weights(y, 7, x, lambda: 7 / total)
    for sample in ((x, y), IndexedExamples(Pool(x, y), torch.arange(7))):
        batches = MicroBatches(loss, sample, x, 2)
        assert len(batches) == 4
        assert [c.examples for c in batches] == [2, 2, 2, 1]
        torch.testing.assert_close(torch.cat([c.weights for c in batches]), expected)


def test_no_more_rows_are_fetched_at_once_than_a_micro_batch_has_and_none_before_they_are_needed() -> None:
    fetched: list[int] = []

    class Counting(Pool):
        def rows(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            fetched.append(len(indices))
            return super().rows(indices)

    model = nn.Linear(4, 3).double()
    pool = Counting(normal(9, 4), torch.arange(9) % 3)
    asked = SupervisedObjective(model, CrossEntropy(), IndexedExamples(pool, torch.arange(9)), micro_batch=4)
    assert fetched == []
    asked.loss()
    assert fetched == [4, 4, 1]


def test_a_chosen_sample_is_cast_as_it_is_fetched() -> None:
    model = nn.Linear(4, 4)
    x = normal(5, 4).float()
    asked = SupervisedObjective(
        model, loss_of(nn.MSELoss()), IndexedExamples(Pool(x, x), torch.arange(5)), micro_batch=2
    )
    wide = asked.cast(torch.float64)
    assert wide is not None
    model.double()
    assert_close(wide.loss(), asked.cast(torch.float64).loss())
    assert wide.loss().dtype == torch.float64


def test_inputs_without_targets_are_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="inputs were given without targets"):
        SupervisedObjective(nn.Linear(4, 3), CrossEntropy(), torch.zeros(2, 4))


def test_parameters_whose_gradients_are_one_tensor_are_added_up_apart() -> None:
    """Of W + V autograd hands out one gradient for both."""

    class Added(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.v = nn.Parameter(normal(4, 3, seed=1)), nn.Parameter(normal(4, 3, seed=2))

        def forward(self, x: Tensor) -> Tensor:
            return x @ (self.w + self.v)

    model, x, y = Added(), normal(7, 4), torch.arange(7) % 3
    at = {n: p.detach() for n, p in model.named_parameters()}
    one, many = (SupervisedObjective(model, CrossEntropy(), x, y, micro_batch=k) for k in (None, 2))
    for name, expected in one.differentiate(at)[1].items():
        assert_close(many.differentiate(at)[1][name], expected, dimension=7)
