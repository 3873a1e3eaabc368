"""Layer statistics are exactly what the present ``.grad`` is made of, whatever happens around the pass."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from curvlab.errors import ConfigError
from curvlab.objectives.ambient import Ambient
from curvlab.objectives.evaluation import LayerMismatch
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.reader import products
from tests.objectives.asking import Functional, Recurrent, Summed, Twice, layers_of, made, mlp, normal
from tests.objectives.test_ambient import BOTH, listening, same, summary

X, Y = normal(7, 4), normal(7, 3, seed=1)
OTHER = normal(5, 4, seed=2)

Loop = Callable[[nn.Module], None]


def loss(model: nn.Module, x: Tensor = X, y: Tensor = Y) -> Tensor:
    return F.mse_loss(model(x), y)


def plain(model: nn.Module) -> None:
    loss(model).backward()


def clear_by_none(model: nn.Module) -> None:
    for p in model.parameters():
        p.grad = None


def clear_in_place(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.zero_()


def clear_behind_torch(model: nn.Module) -> None:
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.zero_()


CLEARED: dict[str, Loop] = {
    "module.zero_grad": lambda model: model.zero_grad(),
    "p.grad = None": clear_by_none,
    "p.grad.zero_": clear_in_place,
    "p.grad.data.zero_": clear_behind_torch,
}


def looked_at_inputs(model: nn.Module) -> None:
    x = X.clone().requires_grad_()
    value = loss(model, x)
    torch.autograd.grad(value, x, retain_graph=True)
    value.backward()


def looked_at_parameters(model: nn.Module) -> None:
    value = loss(model)
    torch.autograd.grad(value, list(model.parameters()), retain_graph=True)
    value.backward()


def elsewhere_first(model: nn.Module) -> None:
    x = OTHER.clone().requires_grad_()
    torch.autograd.grad(model(x).sum(), x)
    plain(model)


def into_inputs_alone(model: nn.Module) -> None:
    x = OTHER.clone().requires_grad_()
    model(x).sum().backward(inputs=[x])
    plain(model)


def failed_forward(model: nn.Module) -> None:
    with pytest.raises(RuntimeError):
        model(normal(7, 9))
    plain(model)


def graph_kept(model: nn.Module) -> None:
    loss(model).backward(create_graph=True)


def cleared_between_two_of_one_graph(model: nn.Module) -> None:
    value = loss(model)
    value.backward(retain_graph=True)
    model.zero_grad()
    value.backward()


def in_two_halves_of_one_graph(model: nn.Module) -> None:
    value = loss(model)
    (0.25 * value).backward(retain_graph=True)
    (0.75 * value).backward()


DISTURBED: dict[str, Loop] = {
    "input gradients before": looked_at_inputs,
    "parameter gradients before": looked_at_parameters,
    "another forward's input gradients": elsewhere_first,
    "a backward into the inputs alone": into_inputs_alone,
    "a forward that failed": failed_forward,
    "create_graph": graph_kept,
    "cleared between two passes of one graph": cleared_between_two_of_one_graph,
    "two backward passes through one graph": in_two_halves_of_one_graph,
}


@pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True")
@pytest.mark.parametrize("name", DISTURBED)
def test_what_is_not_accumulated_is_no_evidence(name: str) -> None:
    found = []
    for loop in (DISTURBED[name], plain):
        torch.manual_seed(0)
        model = mlp().double()
        ambient, blocks = listening(model)
        loop(model)
        seen = ambient.collect(None)
        assert seen.examples == 7
        found.append(summary(seen, blocks))
    same(*found)


@pytest.mark.parametrize("clear", CLEARED)
@pytest.mark.parametrize("when", ["before the forward", "between forward and backward"])
def test_what_was_cleared_by_any_means_is_no_evidence(clear: str, when: str) -> None:
    """SAM's first pass, a GAN's other player, a skipped batch."""
    torch.manual_seed(0)
    model = mlp().double()
    ambient, blocks = listening(model)
    loss(model, OTHER, normal(5, 3)).backward()
    if when == "before the forward":
        CLEARED[clear](model)
        plain(model)
    else:
        value = loss(model)
        CLEARED[clear](model)
        value.backward()
    mine = ambient.collect(None)
    assert mine.examples == 7
    model.zero_grad()
    plain(model)
    same(summary(mine, blocks), summary(ambient.collect(None), blocks))


def test_clearing_one_layer_drops_the_rows_of_that_layer_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    ambient, blocks = listening(model)
    loss(model, X[:3], Y[:3]).backward()
    model[2].zero_grad()
    loss(model, X[3:], Y[3:]).backward()
    mine = ambient.collect(None).layers[Labels.DATA]
    model.zero_grad()
    loss(model, X[3:], Y[3:]).backward()
    alone = ambient.collect(None).layers[Labels.DATA]
    torch.testing.assert_close(mine["2"][0].grads, alone["2"][0].grads)
    assert mine["0"][0].inputs.shape[0] == 7


@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("why", ["inputs", "canceled", "one of two"])
def test_a_weight_whose_gradient_is_zero_was_not_cleared(why: str, full: bool) -> None:
    """All units before it are off, or examples cancel: its bias has a gradient, and its rows are evidence."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    ambient, blocks = listening(model)
    ambient.ledger.full = full  # a comparison along a direction, or of one output
    x, y = X, Y
    if why == "canceled":
        with torch.no_grad():
            model[2].weight.zero_()
        x, y = X[:1].expand(2, -1), torch.stack([Y[0], -Y[0]]) + model[2].bias.detach()
    else:
        with torch.no_grad():
            model[0].bias.fill_(-100.0)
    F.mse_loss(model(x), y).backward()
    n = len(x)
    if why == "one of two":
        with torch.no_grad():
            model[0].bias.zero_()
        F.mse_loss(model(OTHER), normal(5, 3)).backward()
        n += 5
    else:
        assert not model[2].weight.grad.any()
    seen = ambient.collect(None)
    stats = seen.layers[Labels.DATA]["2"][0]
    assert seen.examples == n == len(stats.inputs)
    of_rows = blocks.split(blocks["2"], products(stats.inputs, stats.grads).sum((0, 1)) / n)
    for name, value in of_rows.items():
        torch.testing.assert_close(value, blocks.slots(seen.gradient)[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("micro", [1, 2])
def test_checkpointed_layers_leave_what_they_leave_without(reentrant: bool, micro: int) -> None:
    class Saves(nn.Module):
        def __init__(self, saves: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.net, self.saves = nn.Linear(4, 4), mlp(), saves

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return checkpoint(self.net, h, use_reentrant=reentrant) if self.saves else self.net(h)

    found = []
    for saves in (True, False):
        model = Saves(saves).double()
        ambient, blocks = listening(model)
        for x, y in zip(X.chunk(micro), Y.chunk(micro), strict=True):
            (loss(model, x, y) / micro).backward()
        seen = ambient.collect(None)
        assert seen.examples == 7
        found.append(summary(seen, blocks))
    same(*found)


def test_calls_of_the_model_in_one_backward_share_their_examples() -> None:
    class Both(nn.Module):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = net

        def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
            return self.net(a), self.net(b)

    net, z = mlp().double(), normal(7, 4, seed=3)
    ambient, blocks = listening(net)
    (net(X) - net(z)).square().sum(1).mean().backward()
    mine = ambient.collect(None)
    pair = Both(net)
    ambient, together = listening(pair)
    net.zero_grad()
    u, v = pair(X, z)
    (u - v).square().sum(1).mean().backward()
    truth = ambient.collect(None)
    assert mine.examples == truth.examples == 7
    same(
        summary(mine, blocks),
        {k.replace("net.", ""): v for k, v in summary(truth, together).items()},
    )


# a gradient that is made of more than calls


def penalized(model: nn.Module) -> Tensor:
    x = X.clone().requires_grad_()
    out = model(x)
    (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
    return F.mse_loss(out, Y) + g.square().sum(1).mean()


@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_a_gradient_penalty_is_found_out_in_the_step_that_has_it(later: bool) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    ambient, blocks = listening(model)
    if later:
        plain(model)
        assert set(ambient.collect(None).layers[Labels.DATA]) == {"0", "2"}
        model.zero_grad()
    penalized(model).backward()
    with pytest.warns(LayerMismatch, match="do not explain its gradient"):
        seen = ambient.collect(None)
    assert not seen.layers[Labels.DATA].keys() & blocks.untapped
    assert "2" in blocks.untapped
    truth = torch.autograd.grad(penalized(model), list(model.parameters()))
    for mine, true in zip(blocks.slots(seen.gradient).values(), truth, strict=True):
        torch.testing.assert_close(mine, true)


def test_a_weight_used_beside_its_layer_is_found_out() -> None:
    model = Functional().double()
    ambient, blocks = listening(model)
    plain(model)
    with pytest.warns(LayerMismatch, match='layer "layer"'):
        seen = ambient.collect(None)
    assert set(seen.layers[Labels.DATA]) == {"out"}
    assert blocks.untapped == {"layer"}
    model.zero_grad()
    plain(model)
    assert set(ambient.collect(None).layers[Labels.DATA]) == {"out"}


def test_a_hook_that_changes_a_gradient_is_found_out() -> None:
    model = mlp().double()
    ambient, _ = listening(model)
    model[0].weight.register_hook(lambda g: 2 * g)
    plain(model)
    with pytest.warns(LayerMismatch, match='layer "0".*or a hook changes the gradient'):
        assert set(ambient.collect(None).layers[Labels.DATA]) == {"2"}


@pytest.mark.parametrize(
    "name", ["layer called twice", "tied layers", "convolutions", "one example at a time"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_is_no_mismatch(name: str, dtype: torch.dtype) -> None:
    model, x, y = made(name)
    model, x, y = model.to(dtype), x.to(dtype), y.to(dtype)
    ambient, _ = listening(model)
    for _ in range(20):
        for part in (slice(0, 3), slice(3, 7)):
            (F.mse_loss(model(x[part]), y[part]) * 1e3).backward()
        ambient.collect(None)
        with torch.no_grad():
            for p in model.parameters():
                p.add_(torch.randn_like(p), alpha=0.3)
                p.grad = None


# how many examples


def counted(model: nn.Module, declared: object = None) -> tuple[Ambient, Blocks]:
    blocks = layers_of(model)
    ambient = Ambient(blocks, "mean", examples=declared)  # type: ignore[arg-type]
    ambient.listen(BOTH)
    return ambient, blocks


class Edges(nn.Module):
    """Takes the edges of a graph, or a time, before the nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, first: Tensor, x: Tensor) -> Tensor:
        return self.net(x) * first.sum()


class TimeFirst(nn.Module):
    def __init__(self, time: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.time = Summed(), time

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner.layer(x)).mean(self.time)
        return self.inner.out(h)


@pytest.mark.parametrize("declared", [7, lambda first, x: x.shape[0]], ids=["a number", "a function"])
def test_a_first_argument_that_is_not_the_batch_is_declared_or_refused(declared: object) -> None:
    model, edges = Edges().double(), torch.ones(2, 9, dtype=torch.float64)
    ambient, blocks = counted(model, declared)
    F.mse_loss(model(edges, X), Y).backward()
    mine = ambient.collect(None)
    model.zero_grad()
    ambient, _ = counted(model)
    F.mse_loss(model(torch.tensor(18.0).double(), X), Y).backward()  # a scalar is skipped
    same(summary(mine, blocks), summary(ambient.collect(None), blocks))
    F.mse_loss(model(edges, X), Y).backward()
    with pytest.raises(ConfigError, match=r"first input has 2 entries.*output 7.*\n.*examples="):
        ambient.collect(None)


def test_time_before_the_batch_is_the_same_with_the_number_declared_and_refused_without() -> None:
    sequence = normal(5, 7, 4)
    mine, theirs = TimeFirst(0).double(), TimeFirst(1).double()
    ambient, blocks = counted(mine, 7)
    F.mse_loss(mine(sequence), Y).backward()
    found = summary(ambient.collect(None), blocks)
    ambient, blocks = counted(theirs)
    F.mse_loss(theirs(sequence.transpose(0, 1)), Y).backward()
    same(found, summary(ambient.collect(None), blocks))
    ambient, _ = counted(mine)
    mine.zero_grad()
    F.mse_loss(mine(sequence), Y).backward()
    with pytest.raises(ConfigError, match="it is unclear which one counts the examples"):
        ambient.collect(None)


@pytest.mark.parametrize("declared", [None, 7])
def test_a_loss_by_another_method_than_forward_is_counted_if_the_number_is_declared(declared: object) -> None:
    model = mlp().double()
    holder = nn.Module()
    holder.net = model
    ambient, _ = counted(holder, declared)
    F.mse_loss(holder.net(X), Y).backward()
    if declared is None:
        with pytest.raises(ConfigError, match="call the model"):
            ambient.collect(None)
    else:
        assert ambient.collect(None).examples == 7


class Answers(nn.Module):
    """Returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, time: Tensor, x: Tensor) -> Tensor:
        return F.mse_loss(self.net(x) * time.sum(), Y)


@pytest.mark.parametrize("first", [torch.ones(1), torch.ones(2, 3), torch.ones(7, 2)], ids=["1", "2 3", "7"])
def test_a_model_that_returns_its_loss_agrees_with_its_last_layer_or_is_refused(first: Tensor) -> None:
    model = Answers().double()
    ambient, _ = counted(model)
    model(first.double(), X).backward()
    if first.shape[0] == 7:
        assert ambient.collect(None).examples == 7
    else:
        with pytest.raises(ConfigError, match="that of its last layer's output 7"):
            ambient.collect(None)


def test_a_product_of_axes_that_happens_to_fit_is_refused() -> None:
    model, table = Edges().double(), torch.ones(1, 7, dtype=torch.float64)
    ambient, _ = counted(model)
    F.mse_loss(model(table, X), Y).backward()
    with pytest.raises(ConfigError, match="first input has 1 entries, that of its output 7"):
        ambient.collect(None)


@pytest.mark.parametrize("whole", [True, False], ids=["the model", "a part"])
@pytest.mark.parametrize("needs", [BOTH, Needs(examples=True)], ids=["rows", "the number alone"])
def test_examples_are_counted_once_through_a_reentrant_checkpoint(needs: Needs, whole: bool) -> None:
    class Saves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) if whole else checkpoint(self.net, x, use_reentrant=True)

    model, x = Saves().double(), X.clone().requires_grad_()
    ambient, _ = listening(model, needs=needs)
    out = checkpoint(model, x, use_reentrant=True) if whole else model(x)
    F.mse_loss(out, Y).backward()
    assert ambient.collect(None).examples == 7


def test_calls_of_different_sizes_in_one_backward_are_refused() -> None:
    model = mlp().double()
    ambient, _ = counted(model)
    (model(X).sum() + model(OTHER).sum()).backward()
    with pytest.raises(ConfigError, match="calls of the model with 5 and 7 examples"):
        ambient.collect(None)


def test_a_declaration_that_is_no_number_is_refused() -> None:
    model = mlp().double()
    ambient, _ = counted(model, lambda x: x.mean())
    with pytest.raises(ConfigError, match="expected a whole number ≥ 0"):
        model(X)
    assert ambient is not None


# what is held


def test_backward_passes_that_no_step_follows_do_not_pile_up() -> None:
    model = mlp().double()
    ambient, _ = listening(model, needs=Needs(frozenset({Labels.DATA})))

    def numbers() -> int:
        gc.collect()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of deprecated attributes that looking at every object touches
            return sum(t.numel() for t in gc.get_objects() if isinstance(t, Tensor))

    def look() -> None:
        x = X.clone().requires_grad_()
        torch.autograd.grad(loss(model, x), x)

    look()
    before = numbers()
    for _ in range(10):
        look()
    assert numbers() <= before
    for _ in range(10):
        model.zero_grad()
        plain(model)
    model.zero_grad()
    look()
    ambient.clear()
    assert numbers() <= before


def test_accumulation_without_end_is_refused_before_memory_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("curvlab.objectives.ledger.MOST_PASSES", 3)
    model = mlp().double()
    ambient, _ = listening(model)
    for _ in range(3):
        plain(model)
    with pytest.raises(ConfigError, match=r"more than 3 backward passes.*\n.*zero_grad"):
        plain(model)
    assert ambient is not None


def test_hooks_are_gone_with_the_reader() -> None:
    model = Twice().double()
    ambient, blocks = listening(model)
    plain(model)
    hooks = [p._backward_hooks for p in blocks.parameters.values()]
    assert all(hooks)
    del ambient
    gc.collect()
    assert not any(p._backward_hooks for p in blocks.parameters.values())
    assert not any(m._forward_hooks for m in model.modules())


class Own(nn.LSTM):
    """Computes something that no reader knows."""

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        return super().forward(x.flip(1))


def test_a_layer_that_is_no_layer_to_us_disturbs_nothing() -> None:
    torch.manual_seed(0)
    model = Recurrent(Own).double()
    ambient, _ = listening(model)
    loss(model, normal(7, 3, 4)).backward()
    assert set(ambient.collect(None).layers[Labels.DATA]) == {"out"}
