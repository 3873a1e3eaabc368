"""A plain ``loss.backward()`` loop: the pass it leaves behind is the one an objective would give."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError
from curvlab.objectives.ambient import Ambient
from curvlab.objectives.supervised import objective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.reader import products
from tests.engine.composed import optimizer
from tests.objectives.asking import MODELS, Functional, ask, layers_of, made, mlp, normal

BOTH = Needs(frozenset({Labels.DATA, Labels.NONE}))


def listening(model: nn.Module, reduction: str = "mean", needs: Needs = BOTH) -> tuple[Ambient, Blocks]:
    blocks = layers_of(model)
    ambient = Ambient(blocks, reduction)
    ambient.listen(needs)
    return ambient, blocks


def collected(ambient: Ambient, loss: Tensor) -> Evaluation:
    loss.backward()
    return ambient.collect(loss)


def summary(seen: Evaluation, blocks: Blocks) -> dict[str, Tensor]:
    """A pass with the order of examples and positions summed out."""
    found = dict(blocks.slots(seen.gradient))
    for kind, layers in seen.layers.items():
        for name, (stats,) in layers.items():
            found[f"{kind} {name} A"] = torch.einsum("nsi,nsj->ij", stats.inputs, stats.inputs)
            if stats.grads is not None:
                per_example = products(stats.inputs, stats.grads)
                found[f"{kind} {name} F"] = per_example.square().sum((0, 1))
                found[f"{kind} {name} B"] = torch.einsum("vnso,vnsp->op", stats.grads, stats.grads)
    return found


def same(mine: dict[str, Tensor], truth: dict[str, Tensor]) -> None:
    assert mine.keys() == truth.keys()
    for key, value in truth.items():
        torch.testing.assert_close(mine[key], value, msg=lambda m, k=key: f"{k}: {m}")


# a weight used functionally is found out by an objective's first step only
@pytest.mark.parametrize("name", [n for n in MODELS if MODELS[n][0] is not Functional])
def test_a_plain_backward_leaves_the_pass_that_an_objective_gives(name: str) -> None:
    model, x, y = made(name)
    ambient, blocks = listening(model)
    criterion = nn.MSELoss(reduction="sum")  # over positions and coordinates: one term per example
    mine = collected(ambient, criterion(model(x), y) / len(x))
    truth = ask(objective(model, criterion, x, y), BOTH, blocks)
    assert (mine.examples, mine.positions) == (truth.examples, truth.positions) == (7, 1)
    if name == "unused layers":  # an output that nobody uses never hears of a gradient
        truth = Evaluation(
            7,
            truth.loss,
            truth.gradient,
            {kind: {n: s for n, s in found.items() if n != "vain"} for kind, found in truth.layers.items()},
        )
    same(summary(mine, blocks), summary(truth, blocks))


@pytest.mark.parametrize("name", ["layer called twice", "in-place activation"])
def test_statistics_of_one_forward_keep_the_order_of_examples(name: str) -> None:
    model, x, y = made(name)
    ambient, blocks = listening(model)
    mine = collected(ambient, F.mse_loss(model(x), y))
    truth = ask(objective(model, nn.MSELoss(), x, y), BOTH, blocks)
    last = "out" if name == "layer called twice" else "2"
    for field in ("inputs", "grads"):
        torch.testing.assert_close(
            getattr(mine.layers[Labels.DATA][last][0], field),
            getattr(truth.layers[Labels.DATA][last][0], field),
        )


def test_a_summed_loss_becomes_the_mean() -> None:
    model, x, y = made("in-place activation")
    ambient, blocks = listening(model, "sum")
    mine = collected(ambient, F.mse_loss(model(x), y, reduction="sum"))
    truth = ask(objective(model, nn.MSELoss(reduction="sum"), x, y), BOTH, blocks)
    same(summary(mine, blocks), summary(truth, blocks))


@pytest.mark.parametrize("name", ["output per position", "extra axes"])
def test_a_mean_over_tokens_carries_the_root_of_their_number(name: str) -> None:
    model, x, y = made(name)
    ambient, blocks = listening(model, "mean-tokens")
    mine = collected(ambient, F.mse_loss(model(x), y))
    truth = ask(objective(model, nn.MSELoss(), x, y), BOTH, blocks)
    assert mine.positions == truth.positions > 1
    same(summary(mine, blocks), summary(truth, blocks))


@pytest.mark.parametrize(("reduction", "over"), [("mean", "mean"), ("sum", "sum"), ("mean-tokens", "mean")])
def test_several_backwards_are_one_pass_over_all_their_examples(reduction: str, over: str) -> None:
    model, x, y = made("output per position")
    ambient, blocks = listening(model, reduction)
    whole = collected(ambient, F.mse_loss(model(x), y, reduction=over))
    model.zero_grad()
    for part in (slice(0, 3), slice(3, 7)):
        loss = F.mse_loss(model(x[part]), y[part], reduction=over)
        (loss * (len(x[part]) / len(x) if over == "mean" else 1.0)).backward()
    parts = ambient.collect(None)
    assert parts.examples == 7
    same(summary(parts, blocks), summary(whole, blocks))


def test_a_mean_over_tokens_of_passes_of_other_lengths_counts_every_token_alike() -> None:
    model, _, _ = made("output per position")
    ambient, _ = listening(model, "mean-tokens")
    batches = [(normal(3, 2, 4), normal(3, 2, 3, seed=1)), (normal(2, 5, 4, seed=2), normal(2, 5, 3, seed=3))]
    tokens = sum(x.shape[0] * x.shape[1] for x, _ in batches)
    for x, y in batches:
        (F.mse_loss(model(x), y, reduction="sum") / tokens).backward()
    (stats,) = ambient.collect(None).layers[Labels.DATA]["0"]
    assert stats.grads is not None
    g, a = stats.grads.flatten(0, 2), stats.inputs.flatten(0, 1)
    rows, truth = [], torch.zeros(5, 5, dtype=a.dtype)
    for x, y in batches:
        out = model(x)
        for term in (out - y).square().sum(-1).flatten():
            (each,) = torch.autograd.grad(term, model[0].bias, retain_graph=True)
            truth += torch.outer(each, each) / tokens
        rows.append(x.flatten(0, 1))
    torch.testing.assert_close(g.mT @ g / stats.inputs.shape[0], truth)
    torch.testing.assert_close(a[:, :4].mT @ a[:, :4], torch.cat(rows).mT @ torch.cat(rows))


def test_statistics_under_autocast_are_in_the_dtype_that_layers_computed_in() -> None:
    model, x, y = made("in-place activation")
    model, x, y = model.float(), x.float(), y.float()
    ambient, blocks = listening(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = F.mse_loss(model(x), y)
    mine = collected(ambient, loss)
    truth = ask(objective(model, nn.MSELoss(), x, y), BOTH, blocks)
    for key, value in summary(truth, blocks).items():
        found = summary(mine, blocks)[key]
        assert not key.endswith(" B") or found.dtype == torch.bfloat16
        torch.testing.assert_close(found.to(value.dtype), value, rtol=0.1, atol=0.05, msg=key)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("needs", [BOTH, Needs()], ids=["statistics", "gradient only"])
def test_forwards_without_a_gradient_or_without_a_backward_leave_nothing(
    needs: Needs, reduction: str
) -> None:
    model, x, y = made("in-place activation")
    ambient, blocks = listening(model, reduction, needs)
    truth = collected(ambient, F.mse_loss(model(x), y, reduction=reduction))
    model.zero_grad()
    with torch.no_grad():
        model(x)
    model(x[:2])
    loss = F.mse_loss(model(x), y, reduction=reduction)
    model(x[:3])
    mine = collected(ambient, loss)
    counted = bool(needs.layers) or reduction == "sum"
    assert mine.examples == truth.examples == (7 if counted else 0)
    same(summary(mine, blocks), summary(truth, blocks))


def test_a_pass_is_over_once_it_is_collected() -> None:
    model, x, y = made("in-place activation")
    ambient, _ = listening(model)
    collected(ambient, F.mse_loss(model(x), y))
    assert collected(ambient, F.mse_loss(model(x[:2]), y[:2])).examples == 2


def test_steps_that_ask_for_no_statistics_keep_none() -> None:
    model, x, y = made("in-place activation")
    ambient, _ = listening(model, needs=Needs())
    kept = []
    handle = model[0].register_forward_hook(lambda m, args, out: kept.append(weakref.ref(args[0])))
    loss = F.mse_loss(model(x.clone()), y)
    loss.backward()
    del loss
    gc.collect()
    assert kept[0]() is None
    handle.remove()
    assert not ambient.collect(None).layers


def test_asked_for_statistics_of_passes_it_did_not_see_it_says_so() -> None:
    model, x, y = made("in-place activation")
    F.mse_loss(model(x), y).backward()
    ambient, _ = listening(model)
    with pytest.raises(
        ConfigError, match="do not come from the recorded calls of the layers.*\n.*make the optimizer"
    ):
        ambient.collect(None)


def test_a_sum_over_nothing_is_refused_in_words() -> None:
    model, x, y = made("in-place activation")
    F.mse_loss(model(x), y, reduction="sum").backward()
    ambient, _ = listening(model, "sum", Needs())
    with pytest.raises(ConfigError, match='reduction = "sum" needs a call of the model'):
        ambient.collect(None)


def test_an_unknown_reduction_is_refused_in_words() -> None:
    with pytest.raises(ConfigError, match="reduction = 'average'\n.*mean-tokens"):
        Ambient(layers_of(mlp()), "average")


@pytest.mark.parametrize(
    "wrap", [lambda f: (f, 1), lambda f: {"logits": f, "hidden": [f]}], ids=["tuple", "dict"]
)
def test_outputs_in_containers_are_looked_into(wrap: Callable[[Tensor], Any]) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return wrap(self.layer(x))

    model = Wrapped().double()
    ambient, _ = listening(model, "sum", Needs())
    model(normal(3, 4))
    found = model(normal(5, 4))
    loss = (found[0] if isinstance(found, tuple) else found["logits"]).square().sum()
    assert collected(ambient, loss).examples == 5


@pytest.mark.parametrize("labels", ["data", "model"])
def test_what_an_objective_evaluates_is_not_captured_a_second_time(labels: str) -> None:
    model, x, y = made("in-place activation")
    opt = optimizer("kfac", model, labels=labels, refresh=1)
    for _ in range(2):
        opt.step(objective(model, nn.MSELoss(), x, y))
        assert not opt.ambient.ledger.accumulated.entries
    F.mse_loss(model(x), y).backward()
    assert [len(uses) for uses in opt.ambient.ledger.accumulated.entries.values()] == [1, 1]


def test_inputs_given_by_keyword_are_counted_too() -> None:
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, *, scale: float, x: Tensor) -> Tensor:
            return self.layer(x) * scale

    model = Keyword().double()
    ambient, _ = listening(model, "sum")
    assert collected(ambient, model(scale=2.0, x=normal(5, 4)).square().sum()).examples == 5


# the model and its copies


def test_a_deep_copy_of_the_model_is_free_and_disturbs_nobody() -> None:
    model, x, y = made("in-place activation")
    opt = optimizer("kfac", model, labels="data", refresh=1)
    twin_model, _, _ = made("in-place activation")
    twin = optimizer("kfac", twin_model, labels="data", refresh=1)
    for _ in range(3):
        duplicate = copy.deepcopy(model)
        F.mse_loss(duplicate(x), y).backward()
        for m, o in ((model, opt), (twin_model, twin)):
            o.zero_grad()
            loss = F.mse_loss(m(x), y)
            F.mse_loss(duplicate(x[:2]), y[:2]).backward()
            loss.backward()
            o.step()
        assert all(a is not b for a, b in zip(model.parameters(), duplicate.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin_model.parameters(), strict=True))


def test_a_model_can_be_pickled_and_comes_back_free() -> None:
    model, x, y = made("in-place activation")
    opt = optimizer("kfac", model, labels="data")
    F.mse_loss(model(x), y).backward()
    opt.step()
    other = pickle.loads(pickle.dumps(model))
    F.mse_loss(other(x), y).backward()
    assert not opt.ambient.ledger.accumulated.entries
    torch.testing.assert_close(other(x), model(x))


@pytest.mark.parametrize("name", ["sgd", "adamw", "kfac"])
def test_hooks_do_not_keep_the_optimizer_alive_and_outlive_it_quietly(name: str) -> None:
    model, x, y = made("in-place activation")
    opt = optimizer(name, model)
    opt.step(objective(model, nn.MSELoss(), x, y))
    gone = weakref.ref(opt)
    del opt
    gc.collect()
    assert gone() is None
    F.mse_loss(model(x), y).backward()


def test_hooks_do_not_keep_the_model_alive() -> None:
    model, x, y = made("in-place activation")
    opt = optimizer("kfac", model, labels="data")
    F.mse_loss(model(x), y).backward()
    opt.step()
    gone = weakref.ref(model)
    del model, opt
    gc.collect()
    assert gone() is None
