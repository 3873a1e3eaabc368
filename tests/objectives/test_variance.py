"""How much gradients of single examples differ, against each example's own gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.errors import UnsupportedEvidence
from curvlab.objectives.evaluation import LayerMismatch
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.objectives.variance import SlowVariance, output_gradients
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import Problem, supervised_losses
from tests.objectives.asking import MODELS, Recurrent, ask, layers_of, made, normal

VARIANCE = Needs(variance=True)


def by_hand(asked: SupervisedObjective, blocks: Blocks) -> tuple[Tensor, Tensor]:
    """Total and along, from the gradient of each ℓ_n in one pass over the whole batch."""
    batches = asked._batches(asked.gradient_sample)
    n, parameters, columns = batches.examples, blocks.parameters, []
    with asked.randomness.repeated():
        (chunk,) = batches
        outputs = asked.model(chunk.inputs)
        share = output_gradients(batches.loss, chunk, outputs)
        for i in range(n):
            v = torch.zeros_like(share)
            v[i] = share[i]
            g = torch.autograd.grad(
                outputs, list(parameters.values()), v, retain_graph=True, allow_unused=True
            )
            columns.append(blocks.pack(dict(zip(parameters, g, strict=True))).flat.clone())
    each = torch.stack(columns)
    mean = each.mean(0)
    return (each - mean).square().sum() / (n - 1), (each @ mean).var()


def check(seen: Evaluation, truth: tuple[Tensor, Tensor]) -> None:
    assert seen.variance is not None
    scale = float(seen.gradient.dot(seen.gradient)) * seen.examples
    for mine, expected in zip((seen.variance.total, seen.variance.along), truth, strict=True):
        assert_close(mine, expected, dimension=500, scale=max(scale, float(expected)))


@pytest.mark.filterwarnings("ignore::curvlab.objectives.evaluation.LayerMismatch")
@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("name", MODELS)
def test_the_variance_is_that_of_every_examples_own_gradient(name: str, micro_batch: int | None) -> None:
    model, x, y = made(name)
    blocks = layers_of(model)
    truth = by_hand(objective(model, nn.MSELoss(), x, y), blocks)
    asked = objective(model, nn.MSELoss(), x, y, micro_batch=micro_batch)
    for step in (0, 1):
        check(ask(asked, VARIANCE, blocks, step=step), truth)


@pytest.mark.parametrize("problem", supervised_losses(7), ids=str)
def test_masks_and_weights_count_as_they_do_in_the_loss(problem: Problem) -> None:
    model = problem.model()
    blocks = problem.blocks(model)
    asked = problem.objective(model)
    check(ask(asked, VARIANCE, blocks), by_hand(asked, blocks))


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("name", ["convolutions", "layers without reader", "shared positions"])
def test_beside_statistics_and_factored_gradients_nothing_changes(name: str, micro_batch: int | None) -> None:
    model, x, y = made(name)
    blocks = layers_of(model)
    asked = objective(model, nn.MSELoss(), x, y, micro_batch=micro_batch)
    needs = Needs(frozenset({Labels.DATA, Labels.MODEL}), samples=1, factored=True)
    plain, both = ask(asked, needs, blocks), ask(asked, needs | VARIANCE, blocks)
    truth = by_hand(objective(model, nn.MSELoss(), x, y), blocks)
    assert plain.gradient.outers.keys() == both.gradient.outers.keys()
    check(both, truth)
    assert torch.equal(plain.gradient.flat, both.gradient.flat)
    for kind, layers in plain.layers.items():
        for block, (stats,) in layers.items():
            assert torch.equal(stats.inputs, both.layers[kind][block][0].inputs)
            assert torch.equal(stats.grads, both.layers[kind][block][0].grads)


def test_asked_for_the_variance_alone_no_statistics_are_kept() -> None:
    model, x, y = made("in-place activation")
    assert not ask(objective(model, nn.MSELoss(), x, y), VARIANCE, layers_of(model)).layers


class Gated(nn.Module):
    """Dropout around a layer, and a parameter that has no layer."""

    def __init__(self, bare: bool) -> None:
        super().__init__()
        self.first, self.drop, self.out = nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, 3)
        self.gain = nn.Parameter(torch.ones(6)) if bare else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(torch.tanh(self.first(x)))
        return self.out(x if self.gain is None else x * self.gain)


@pytest.mark.parametrize("bare", [False, True])
def test_dropped_units_are_those_of_the_gradient(bare: bool) -> None:
    torch.manual_seed(3)
    model, x, y = Gated(bare).double(), normal(7, 4), torch.arange(7) % 3
    blocks = layers_of(model)
    asked = objective(model, nn.CrossEntropyLoss(), x, y)
    check(ask(asked, VARIANCE, blocks), by_hand(asked, blocks))


class Own(nn.GRU):
    """Computes something that no reader knows."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return super().forward(x.flip(1))


def test_a_model_that_torch_cannot_batch_is_differentiated_one_example_at_a_time() -> None:
    torch.manual_seed(0)
    model = Recurrent(Own).double()
    blocks = layers_of(model)
    asked = objective(model, nn.CrossEntropyLoss(), normal(7, 3, 4), torch.arange(7) % 3)
    with pytest.warns(SlowVariance, match="cannot batch this model"):
        seen = ask(asked, VARIANCE, blocks)
    check(seen, by_hand(asked, blocks))


class Sequential(nn.Module):
    """Calls a layer on a sequence of batches, positions leading: its rows are not by example."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.layer(x.transpose(0, 1))).mean(0))


def test_rows_in_another_order_than_the_examples_are_not_trusted() -> None:
    torch.manual_seed(0)
    model, x, y = Sequential().double(), normal(7, 7, 4), torch.arange(7) % 3
    blocks = layers_of(model)
    asked = objective(model, nn.CrossEntropyLoss(), x, y)
    check(ask(asked, VARIANCE, blocks), by_hand(asked, blocks))


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_examples_that_meet_in_a_layer_have_no_gradients_of_their_own(micro_batch: int | None) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    x, y = normal(7, 4), torch.arange(7) % 3
    asked = objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=micro_batch)
    with pytest.raises(UnsupportedEvidence, match=r'layer "1" \(BatchNorm1d\), whose output for one'):
        ask(asked, VARIANCE, layers_of(model))
    model.eval()
    blocks = layers_of(model)
    check(ask(asked, VARIANCE, blocks), by_hand(objective(model, nn.CrossEntropyLoss(), x, y), blocks))


def test_a_single_example_does_not_vary() -> None:
    model, x, y = made("in-place activation")
    seen = ask(objective(model, nn.MSELoss(), x[:1], y[:1]), VARIANCE, layers_of(model))
    assert seen.variance is not None
    assert bool(seen.variance.total.isnan())
    assert bool(seen.variance.along.isnan())


def test_equal_examples_do_not_vary() -> None:
    model, x, y = made("in-place activation")
    same = objective(model, nn.MSELoss(), x[:1].expand(6, -1), y[:1].expand(6, -1))
    seen = ask(same, VARIANCE, layers_of(model))
    assert seen.variance is not None
    assert 0.0 <= float(seen.variance.total) < 1e-12 * float(seen.gradient.norm()) ** 2
    assert 0.0 <= float(seen.variance.along) < 1e-12 * float(seen.gradient.norm()) ** 4


def test_looking_at_a_few_examples_leaves_random_numbers_and_buffers_alone() -> None:
    states = []
    for needs in (Needs(), VARIANCE):
        torch.manual_seed(3)
        model = Gated(bare=True).double()
        ask(
            objective(model, nn.CrossEntropyLoss(), normal(7, 4), torch.arange(7) % 3),
            needs,
            layers_of(model),
        )
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_the_variance_needs_no_second_pass_where_rows_are_at_hand() -> None:
    model, x, y = made("in-place activation")
    calls = []
    model.register_forward_hook(lambda m, args, out: calls.append(len(out)))
    ask(objective(model, nn.MSELoss(), x, y), VARIANCE, layers_of(model))
    assert calls.count(7) == 1


def test_a_warning_of_an_unexplained_layer_still_comes() -> None:
    model, x, y = made("weight used functionally too")
    with pytest.warns(LayerMismatch):
        ask(objective(model, nn.MSELoss(), x, y), VARIANCE, layers_of(model), step=0)
