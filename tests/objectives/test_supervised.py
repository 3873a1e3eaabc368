"""Supervised objectives: statistics, factored gradients, micro-batches, and nothing changed on the way."""

from __future__ import annotations

import gc
import warnings
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError
from curvlab.objectives.evaluation import LayerMismatch
from curvlab.objectives.losses import CriterionLoss, CrossEntropy, MeanSquaredError
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import GRADIENT_ONLY, Labels, Needs
from curvlab.protocols.pieces import cut, whole
from curvlab.protocols.reader import products
from curvlab.testing.reference import ggn
from tests.objectives.asking import (
    EVERY,
    MODELS,
    ask,
    classifier,
    gradients,
    layers_of,
    made,
    mlp,
    normal,
    wanting,
)


def one_layer() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Linear(4, 3).double(), normal(7, 4), torch.arange(7) % 3


# statistics, by hand


def test_inputs_are_the_layers_own_with_a_column_of_ones() -> None:
    model, x, y = classifier()
    seen = ask(objective(model, nn.CrossEntropyLoss(), x, y), wanting(Labels.NONE), layers_of(model))
    ones = torch.ones(7, 1, dtype=x.dtype)
    hidden = torch.relu(F.linear(x, model[0].weight, model[0].bias))
    for name, expected in (("0", x), ("2", hidden)):
        (stats,) = seen.layers[Labels.NONE][name]
        torch.testing.assert_close(stats.inputs, torch.cat([expected, ones], 1).unsqueeze(1))
        assert stats.grads is None


def test_data_labels_give_the_gradients_of_the_unaveraged_loss() -> None:
    model, x, y = classifier()
    seen = ask(objective(model, nn.CrossEntropyLoss(), x, y), wanting(Labels.DATA), layers_of(model))
    last = seen.layers[Labels.DATA]["2"][0].grads
    p = model(x).softmax(1)
    torch.testing.assert_close(last[0, :, 0], (p - F.one_hot(y, 3)).detach())
    first = seen.layers[Labels.DATA]["0"][0].grads
    active = (F.linear(x, model[0].weight, model[0].bias) > 0).double()
    torch.testing.assert_close(first[0, :, 0], (last[0, :, 0] @ model[2].weight * active).detach())


def test_exact_labels_give_the_columns_of_the_output_hessians_root() -> None:
    model, x, y = one_layer()
    seen = ask(objective(model, nn.CrossEntropyLoss(), x, y), wanting(Labels.EXACT), layers_of(model))
    g = seen.layers[Labels.EXACT]["model"][0].grads[:, :, 0]  # [v, n, o]
    p = model(x).softmax(1).detach()
    expected = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    torch.testing.assert_close(torch.einsum("vno,vnp->nop", g, g), expected)


@pytest.mark.parametrize("samples", [1, 4])
def test_model_labels_give_the_gradients_of_sampled_labels_each_over_the_root_of_their_number(
    samples: int,
) -> None:
    model, x, y = one_layer()
    seen = ask(
        objective(model, nn.CrossEntropyLoss(), x, y),
        wanting(Labels.MODEL, samples=samples),
        layers_of(model),
    )
    g = seen.layers[Labels.MODEL]["model"][0].grads[:, :, 0] * samples**0.5
    assert g.shape == (samples, 7, 3)
    labels = model(x).softmax(1).detach() - g
    assert torch.equal(labels.round(), labels.round().clamp(0, 1))
    torch.testing.assert_close(labels, labels.round())
    assert torch.equal(labels.round().sum(-1), torch.ones(samples, 7, dtype=x.dtype))


def test_sampled_labels_come_from_the_steps_generator_alone() -> None:
    model, x, y = one_layer()
    asked = objective(model, nn.CrossEntropyLoss(), x, y)

    def drawn(seed: int) -> Tensor:
        seen = ask(asked, wanting(Labels.MODEL, samples=8), layers_of(model), seed=seed)
        return seen.layers[Labels.MODEL]["model"][0].grads

    first = drawn(0)
    torch.manual_seed(77)
    assert torch.equal(drawn(0), first)
    assert not torch.equal(drawn(1), first)


def test_a_loss_averaged_over_positions_carries_their_root_in_each_row() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3).double(), normal(5, 6, 4), normal(5, 6, 3, seed=1)
    seen = ask(objective(model, nn.MSELoss(), x, y), wanting(Labels.DATA, Labels.EXACT), layers_of(model))
    assert seen.positions == 6
    each = 2.0 / 3.0 * (model(x) - y).detach()  # gradient of one position's term
    torch.testing.assert_close(seen.layers[Labels.DATA]["model"][0].grads[0], each / 6**0.5)
    exact = seen.layers[Labels.EXACT]["model"][0].grads
    torch.testing.assert_close(
        torch.einsum("vnso,vnsp->nsop", exact, exact),
        (torch.eye(3, dtype=x.dtype) * 2.0 / 3.0 / 6.0).expand(5, 6, 3, 3),
    )


def test_a_loss_summed_over_positions_counts_each_in_full() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3).double(), normal(5, 6, 4), normal(5, 6, 3, seed=1)
    seen = ask(objective(model, nn.MSELoss(reduction="sum"), x, y), wanting(Labels.DATA), layers_of(model))
    assert seen.positions == 1
    torch.testing.assert_close(seen.layers[Labels.DATA]["model"][0].grads[0], 2.0 * (model(x) - y).detach())


def test_a_layer_called_twice_has_twice_the_positions() -> None:
    model, x, y = made("layer called twice")
    seen = ask(objective(model, nn.MSELoss(), x, y), wanting(*EVERY), layers_of(model))
    for kind in EVERY:
        assert seen.layers[kind]["layer"][0].inputs.shape == (7, 2, 5)
    inner = torch.tanh(F.linear(x, model.layer.weight, model.layer.bias)).detach()
    torch.testing.assert_close(
        seen.layers[Labels.DATA]["layer"][0].inputs[..., :-1], torch.stack([x, inner], 1)
    )


# gradients


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("kinds", [(), (Labels.NONE,), EVERY], ids=["none asked", "inputs", "all labels"])
@pytest.mark.parametrize("name", MODELS)
def test_the_factored_gradient_is_autograds(
    name: str, kinds: tuple[Labels, ...], micro_batch: int | None
) -> None:
    model, x, y = made(name)
    asked, blocks = objective(model, nn.MSELoss(), x, y, micro_batch=micro_batch), layers_of(model)
    expected = gradients(model, F.mse_loss(model(x), y))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LayerMismatch)
        seen = ask(asked, wanting(*kinds, factored=True), blocks, step=0)
    assert seen.examples == 7
    torch.testing.assert_close(seen.loss, F.mse_loss(model(x), y).detach())
    slots = blocks.assembled(seen.gradient)
    assert set(slots) == set(expected)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(slots[parameter], gradient, msg=lambda m, p=parameter: f"{p}: {m}")


@pytest.mark.parametrize("name", MODELS)
def test_asked_for_a_gradient_alone_no_layer_is_listened_to(name: str) -> None:
    model, x, y = made(name)
    seen = ask(objective(model, nn.MSELoss(), x, y), GRADIENT_ONLY, layers_of(model))
    assert not seen.gradient.outers
    assert not seen.layers
    expected = gradients(model, F.mse_loss(model(x), y))
    for parameter, mine in layers_of(model).assembled(seen.gradient).items():
        torch.testing.assert_close(mine, expected[parameter])


@pytest.mark.parametrize("kinds", [(), (Labels.NONE,), EVERY], ids=["none asked", "inputs", "all labels"])
@pytest.mark.parametrize(("micro_batch", "size"), [(None, 2), (None, 3), (2, 3), (2, 4)])
def test_a_gradient_of_fewer_rows_than_its_matrix_has_stays_factored_until_somebody_reads_it(
    kinds: tuple[Labels, ...], micro_batch: int | None, size: int
) -> None:
    """Of 5 by 5 and 3 by 6: two rows are fewer than either has, three and four than the first."""
    model, x, y = classifier()
    asked = objective(model, nn.CrossEntropyLoss(), x[:size], y[:size], micro_batch=micro_batch)
    seen = ask(asked, wanting(*kinds, factored=True), layers_of(model))
    assert set(seen.gradient.outers) == ({"0", "2"} if size == 2 else {"0"})
    assert seen.gradient["0"].shape == (5, 5)
    assert "0" not in seen.gradient.outers
    expected = gradients(model, F.cross_entropy(model(x[:size]), y[:size]))
    for parameter, mine in layers_of(model).assembled(seen.gradient).items():
        torch.testing.assert_close(mine, expected[parameter])


def test_positions_count_as_rows() -> None:
    model, x, y = made("shared positions")  # two positions an example; 5 by 5 and 3 by 6
    for n, factored in ((1, {"layer", "out"}), (2, {"layer", "out"}), (3, set())):
        asked = objective(model, nn.MSELoss(), x[:n], y[:n])
        seen = ask(asked, wanting(factored=True), layers_of(model))
        assert set(seen.gradient.outers) == factored, n


def test_a_layer_without_statistics_to_make_is_not_kept() -> None:
    """Where autograd forms the gradient and nobody asks for rows, no input outlives the backward pass."""
    model, x, y = classifier()
    kept: list[weakref.ref[Tensor]] = []
    model[1].register_forward_hook(lambda m, args, out: kept.append(weakref.ref(out)))
    seen = ask(objective(model, nn.CrossEntropyLoss(), x, y), wanting(factored=True), layers_of(model))
    gc.collect()
    assert not seen.gradient.outers
    assert kept[0]() is None


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_a_weight_used_beside_its_layer_is_found_out_once_and_trained_with_its_true_gradient(
    micro_batch: int | None,
) -> None:
    model, x, y = made("weight used functionally too")
    asked, blocks = objective(model, nn.MSELoss(), x, y, micro_batch=micro_batch), layers_of(model)
    with pytest.warns(LayerMismatch, match='calls of layer "layer" do not explain its gradient') as caught:
        ask(asked, wanting(Labels.DATA), blocks, step=0)
    assert len(caught) == 1
    assert blocks.untapped == {"layer"}
    later = ask(asked, wanting(Labels.DATA), blocks, step=1)  # warnings are errors: silent from here on
    assert set(later.layers[Labels.DATA]) == {"out"}
    expected = gradients(model, F.mse_loss(model(x), y))
    for parameter, mine in blocks.assembled(later.gradient).items():
        torch.testing.assert_close(mine, expected[parameter])


@pytest.mark.parametrize("name", [n for n in MODELS if n != "weight used functionally too"])
def test_the_first_steps_check_suspects_nobody_else(name: str) -> None:
    model, x, y = made(name)
    blocks = layers_of(model)
    ask(objective(model, nn.MSELoss(), x, y), wanting(Labels.NONE), blocks, step=0)
    model.float()
    ask(objective(model, nn.MSELoss(), x.float(), y.float()), wanting(Labels.NONE), layers_of(model), step=0)
    assert blocks.untapped == blocks.unread.keys()


def test_a_loss_that_is_not_finite_says_nothing_about_layers() -> None:
    model, x, y = classifier()
    blocks, bad = layers_of(model), x.clone()
    bad[0, 0] = torch.nan
    seen = ask(objective(model, nn.CrossEntropyLoss(), bad, y), wanting(Labels.NONE), blocks, step=0)
    assert bool(seen.loss.isnan())
    assert not blocks.untapped


# micro-batches


def grams(seen: Evaluation, blocks: Blocks) -> dict[str, Tensor]:
    """Everything a part may make of a pass, with the order of examples and vectors summed out."""
    found = {"loss": seen.loss, **{f"∇{n}": g for n, g in blocks.assembled(seen.gradient).items()}}
    for kind, layers in seen.layers.items():
        for name, (stats,) in layers.items():
            found[f"{kind} {name} A"] = torch.einsum("nsi,nsj->ij", stats.inputs, stats.inputs)
            if stats.grads is not None:
                per_example = products(stats.inputs, stats.grads)
                found[f"{kind} {name} F"] = per_example.square().sum((0, 1))
    return found


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_micro_batches_are_one_batch_sampled_labels_included(size: int, reduction: str) -> None:
    torch.manual_seed(0)
    model, x = mlp().double(), normal(7, 2, 4)
    weights = torch.tensor([1.0, 3.0, 0.5], dtype=x.dtype)
    y = torch.randint(0, 3, (7, 2), generator=torch.Generator().manual_seed(1))
    y[0] = -100
    criterion = nn.CrossEntropyLoss(weights, reduction=reduction)

    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).movedim(-1, 1)

    whole = Channels()
    blocks, needs = layers_of(whole), wanting(*EVERY, samples=2)
    one = grams(ask(objective(whole, criterion, x, y), needs, blocks), blocks)
    many = grams(ask(objective(whole, criterion, x, y, micro_batch=size), needs, blocks), blocks)
    assert one.keys() == many.keys()
    for key, value in one.items():
        torch.testing.assert_close(many[key], value, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", [n for n in MODELS if n != "weight used functionally too"])
def test_micro_batches_leave_the_statistics_of_one_batch_for_every_model(name: str) -> None:
    model, x, y = made(name)
    blocks, needs = layers_of(model), wanting(*EVERY, samples=2, factored=True)
    one = grams(ask(objective(model, nn.MSELoss(), x, y), needs, blocks), blocks)
    many = grams(ask(objective(model, nn.MSELoss(), x, y, micro_batch=3), needs, blocks), blocks)
    assert one.keys() == many.keys()
    for key, value in one.items():
        torch.testing.assert_close(many[key], value, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("name", [n for n in MODELS if n != "weight used functionally too"])
def test_statistics_are_by_the_losss_examples_and_explain_each_ones_gradient(name: str) -> None:
    """Of ℓ_n, one example at a time: so do the rows of every layer, wherever its examples came from."""
    model, x, y = made(name)
    criterion, blocks = nn.MSELoss(reduction="sum"), layers_of(model)
    seen = ask(objective(model, criterion, x, y), wanting(Labels.DATA), blocks)
    for n in range(len(x)):
        truth = gradients(model, criterion(model(x[n : n + 1]), y[n : n + 1]))
        for block, (stats,) in seen.layers[Labels.DATA].items():
            mine = products(stats.inputs, stats.grads)[0, n]
            for parameter, part in blocks.split(blocks[block], mine).items():
                torch.testing.assert_close(part, cut(parameter, truth[whole(parameter)]))


def test_micro_batches_have_the_loss_and_the_products_of_one_batch() -> None:
    model, x, y = classifier()
    blocks = layers_of(model)
    one, many = (objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=k) for k in (None, 2))
    torch.testing.assert_close(many.loss(), one.loss())
    torch.testing.assert_close(many(), one())
    v = blocks.pack({n: torch.randn_like(p) for n, p in blocks.parameters.items()})
    G, H = (ask(o, Needs(products=1), blocks).ggn for o in (one, many))
    torch.testing.assert_close((H @ v).flat, (G @ v).flat)
    assert H.count == 1


@pytest.mark.parametrize("name", ["convolutions", "frames as examples", "half-frozen convolution"])
def test_products_are_with_the_dense_ggn_where_layers_are_convolutions(name: str) -> None:
    model, x, y = made(name)
    blocks = layers_of(model)
    G = ask(objective(model, nn.MSELoss(), x, y), Needs(products=1), blocks).ggn
    v = blocks.pack({n: torch.randn_like(p) for n, p in blocks.parameters.items()})
    torch.testing.assert_close((G @ v).flat, ggn(model, nn.MSELoss(), x, y, blocks) @ v.flat)


def test_a_micro_batch_below_one_is_refused_in_words() -> None:
    model, x, y = classifier()
    with pytest.raises(ConfigError, match="micro_batch = 0"):
        objective(model, nn.CrossEntropyLoss(), x, y, micro_batch=0)


def test_inputs_that_cannot_be_cut_are_refused_in_words() -> None:
    model, x, y = classifier()
    for inputs in ({"x": x, "edges": x[:2]}, (x, x[:2])):
        with pytest.raises(
            ConfigError, match="2 and 7 inputs and 7 targets cannot be split into equal micro-batches"
        ):
            objective(model, nn.CrossEntropyLoss(), inputs, y, micro_batch=2)


# the samples


def test_curvature_and_acceptance_have_samples_of_their_own() -> None:
    model, x, y = classifier()
    blocks = layers_of(model)
    some, other = (x[:3], y[:3]), (x[3:], y[3:])
    asked = SupervisedObjective(model, CrossEntropy(), x, y, curvature=some, acceptance=other)
    seen = ask(asked, Needs(products=1), blocks)
    assert (seen.examples, seen.curvature_examples) == (7, 3)
    torch.testing.assert_close(asked.loss(), F.cross_entropy(model(x[3:]), y[3:]).detach())
    torch.testing.assert_close(asked.start(seen), asked.loss())
    alone = ask(SupervisedObjective(model, CrossEntropy(), *some), Needs(products=1), blocks)
    v = blocks.read()
    torch.testing.assert_close((seen.ggn @ v).flat, (alone.ggn @ v).flat)


def test_on_one_sample_the_loss_at_the_start_is_known_already() -> None:
    model, x, y = classifier()
    asked = objective(model, nn.CrossEntropyLoss(), x, y)
    seen = ask(asked, GRADIENT_ONLY, layers_of(model))
    assert asked.start(seen) is seen.loss
    torch.testing.assert_close(seen.loss, asked.loss())


def test_the_loss_elsewhere_is_the_loss_there_and_moves_nothing() -> None:
    model, x, y = classifier()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    there = {n: torch.randn_like(p) for n, p in before.items()}
    found = objective(model, nn.CrossEntropyLoss(), x, y).loss(there)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    model.load_state_dict(there)
    torch.testing.assert_close(found, F.cross_entropy(model(x), y).detach())


def test_a_cast_objective_is_the_same_on_other_floats() -> None:
    model, x, y = classifier()
    asked = objective(model, nn.CrossEntropyLoss(), x.float(), y, micro_batch=2)
    wide = asked.cast(torch.float64)
    assert wide.gradient_sample[0].dtype == torch.float64
    assert wide.gradient_sample[1] is y
    torch.testing.assert_close(wide.loss(), F.cross_entropy(model(x.float().double()), y).detach())
    split = SupervisedObjective(
        model, CrossEntropy(), x, y, curvature=(x[:2], y[:2]), acceptance=(x[5:], y[5:])
    ).cast(torch.float32)
    assert [len(s[1]) for s in (split.curvature_sample, split.acceptance_sample)] == [2, 2]
    assert split.acceptance_sample[0].dtype == torch.float32


# criteria


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_criterion_known_by_its_value_has_a_gradient_labels_and_products(
    reduction: str, micro_batch: int | None
) -> None:
    model, x, _ = classifier()
    y, blocks = normal(7, 3, seed=4), layers_of(model)

    def criterion(f: Tensor, t: Tensor) -> Tensor:
        return F.mse_loss(f, t, reduction=reduction)

    known = MeanSquaredError("mean" if reduction == "mean" else "sum")
    by_value = objective(model, criterion, x, y, reduction=reduction, micro_batch=micro_batch)
    assert isinstance(by_value.loss_rule, CriterionLoss)
    needs = wanting(Labels.DATA, Labels.EXACT) | Needs(products=1)
    mine = ask(by_value, needs, blocks)
    truth = ask(SupervisedObjective(model, known, x, y), needs, blocks)
    for key, value in grams(truth, blocks).items():
        torch.testing.assert_close(grams(mine, blocks)[key], value)
    v = blocks.read()
    torch.testing.assert_close((mine.ggn @ v).flat, (truth.ggn @ v).flat)


def test_a_reduction_of_none_is_refused_in_words() -> None:
    model, x, y = classifier()
    for criterion, extra in (
        (nn.CrossEntropyLoss(reduction="none"), {}),
        (F.mse_loss, {"reduction": "none"}),
    ):
        with pytest.raises(ConfigError, match="reduction = 'none'"):
            objective(model, criterion, x, y, **extra)


def test_targets_flattened_beyond_the_inputs_cannot_be_cut_alike() -> None:
    x, y = normal(5, 6, 4), torch.zeros(30, dtype=torch.long)
    with pytest.raises(ConfigError, match="5 inputs and 30 targets cannot be split into equal micro-batches"):
        objective(nn.Linear(4, 3).double(), nn.CrossEntropyLoss(), x, y, micro_batch=2)
