"""Criteria beyond one tensor of outputs and one of targets: log-probabilities, containers, own losses."""

from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError, UnsupportedEvidence
from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.losses import NoCurvature
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.protocols.needs import GRADIENT_ONLY, Labels, Needs
from curvlab.testing.reference import ggn
from tests.objectives.asking import ask, classifier, gradients, layers_of, mlp, normal, wanting

PRODUCTS = Needs(products=1)


def direction(model: nn.Module) -> BlockVector:
    blocks = layers_of(model)
    v = blocks.read()
    v.flat.copy_(normal(v.layout.size, seed=9))
    return v


def product(asked: SupervisedObjective, *, step: int = 0) -> Tensor:
    seen = ask(asked, PRODUCTS, layers_of(asked.model), step=step)
    assert seen.ggn is not None
    return (seen.ggn @ direction(asked.model)).flat


# log-probabilities


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"reduction": "sum"},
        {"ignore_index": 1},
        {"weight": torch.tensor([1.0, 3.0, 0.5], dtype=torch.float64)},
    ],
    ids=str,
)
def test_negative_log_likelihood_has_the_curvature_of_cross_entropy_on_the_logits(
    settings: dict[str, Any], micro_batch: int | None
) -> None:
    model, x, y = classifier()
    ends_in_logs = nn.Sequential(model, nn.LogSoftmax(-1))
    logs = objective(ends_in_logs, nn.NLLLoss(**settings), x, y, micro_batch=micro_batch)
    criterion = nn.CrossEntropyLoss(**settings)
    logits = objective(model, criterion, x, y, micro_batch=micro_batch)
    dense = ggn(model, criterion, x, y, layers_of(model)) @ direction(model).flat
    torch.testing.assert_close(product(logs), dense)
    torch.testing.assert_close(logs.loss(), logits.loss())
    needs = wanting(Labels.DATA, Labels.MODEL, Labels.EXACT)
    a, b = (ask(o, needs, layers_of(o.model), step=0) for o in (logs, logits))
    torch.testing.assert_close(a.gradient.flat, b.gradient.flat)
    for kind, layers in b.layers.items():
        for name, (stats,) in layers.items():
            (mine,) = a.layers[kind][f"0.{name}"]
            B, mine_B = (torch.einsum("vnso,vnsp->op", s.grads, s.grads) for s in (stats, mine))
            torch.testing.assert_close(mine_B, B)


def test_outputs_that_are_no_log_probabilities_are_refused_in_words() -> None:
    model, x, y = classifier()
    with pytest.raises(ConfigError, match="NLLLoss: the outputs are not log-probabilities"):
        ask(objective(model, F.nll_loss, x, y), GRADIENT_ONLY, layers_of(model))


# criteria that products cannot be made of


def ctc(f: Tensor, t: Tensor) -> Tensor:
    n, length = f.shape[:2]
    return F.ctc_loss(f.transpose(0, 1), t, torch.full((n,), length), torch.full((n,), t.shape[1]))


@pytest.mark.parametrize("step", [0, 5])
def test_a_criterion_without_second_derivatives_is_named(step: int) -> None:
    model = nn.Sequential(nn.Linear(4, 5), nn.LogSoftmax(-1)).double()
    x, y = normal(3, 8, 4), torch.ones(3, 2, dtype=torch.long)
    asked = objective(model, ctc, x, y)
    with pytest.raises(ConfigError, match=r"second derivatives of the criterion <function ctc.*\n.*labels ="):
        product(asked, step=step)
    ask(asked, wanting(Labels.DATA), layers_of(model), step=0)  # which need one derivative


class Once(torch.autograd.Function):
    """tanh, whose derivative is a constant to torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Twice(torch.autograd.Function):
    """tanh without forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - ctx.saved_tensors[0].tanh() ** 2)


class Bent(nn.Module):
    """Two layers around a function."""

    def __init__(self, function: type[torch.autograd.Function]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.function, self.a, self.b = function, nn.Linear(4, 5), nn.Linear(5, 3)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function.apply(self.a(x)))


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_functions_of_ones_own_are_differentiated_twice_or_refused_in_words(micro_batch: int | None) -> None:
    """A cut in the graph would make the product a wrong number without an error."""
    x, y = normal(7, 4), torch.arange(7) % 3
    model, criterion = Bent(Twice), nn.CrossEntropyLoss()
    good = objective(model, criterion, x, y, micro_batch=micro_batch)
    dense = ggn(model, criterion, x, y, layers_of(model)) @ direction(model).flat
    torch.testing.assert_close(product(good), dense)
    with pytest.raises(ConfigError, match="second derivatives of the model.*once_differentiable"):
        product(objective(Bent(Once), criterion, x, y, micro_batch=micro_batch))

    def cut(f: Tensor, t: Tensor) -> Tensor:
        return Once.apply(f).square().mean()

    with pytest.raises(ConfigError, match="second derivatives of the criterion.*once_differentiable"):
        product(objective(model, cut, x, y, micro_batch=micro_batch))


def test_a_criterion_that_is_linear_in_the_outputs_is_warned_about_once() -> None:
    model, x, y = classifier()

    def linear(f: Tensor, t: Tensor) -> Tensor:
        return -f.log_softmax(-1).detach()[:, 0].mean() - f.gather(1, t.unsqueeze(1)).mean()

    asked = objective(model, linear, x, y)
    with pytest.warns(NoCurvature, match="criterion .*linear.* is linear in the outputs") as caught:
        ask(asked, PRODUCTS, layers_of(model), step=0)
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not bool(product(asked, step=1).any())


# containers


class Two(NamedTuple):
    a: Tensor
    b: Tensor


def as_tuple(a: Tensor, b: Tensor) -> Any:
    return a, b


def as_dict(a: Tensor, b: Tensor) -> Any:
    return {"a": a, "ids": torch.arange(len(a)), "b": b}


class Heads(nn.Module):
    """Takes two inputs, gives two outputs."""

    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.give, self.body, self.head = give, mlp(), nn.Linear(4, 2)
        self.double()

    def forward(self, batch: Any) -> Any:
        x, z = batch.values() if isinstance(batch, dict) else batch
        return self.give(self.body(x), self.head(z))


class Joined(nn.Module):
    """The same with one tensor of outputs."""

    def __init__(self, heads: nn.Module) -> None:
        super().__init__()
        self.body, self.head = heads.body, heads.head

    def forward(self, batch: Any) -> Tensor:
        return torch.cat([self.body(batch[0]), self.head(batch[1])], 1)


def both(f: Any, t: Any) -> Tensor:
    a, b = (f["a"], f["b"]) if isinstance(f, dict) else f
    y, z = t.values() if isinstance(t, dict) else t
    return F.cross_entropy(a, y) + F.smooth_l1_loss(b, z)


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize("give", [as_tuple, as_dict, Two])
def test_containers_are_trained_and_have_the_products_of_one_tensor(
    give: Callable[..., Any], micro_batch: int | None
) -> None:
    x, z, y, w = normal(7, 4), normal(7, 4, seed=1), torch.arange(7) % 3, normal(7, 2, seed=2)
    inputs: Any = {"x": x, "z": z} if give is as_dict else (x, z)
    targets: Any = {"y": y, "w": w} if give is as_dict else (y, w)
    model = Heads(give)
    asked = objective(model, both, inputs, targets, micro_batch=micro_batch)
    seen = ask(asked, wanting(Labels.DATA), layers_of(model), step=0)
    assert seen.examples == 7
    blocks, value = layers_of(model), both(model(inputs), targets)
    torch.testing.assert_close(seen.loss, value.detach())
    torch.testing.assert_close(asked.loss(), value.detach())
    for name, g in gradients(model, value).items():
        torch.testing.assert_close(blocks.slots(seen.gradient)[name], g)
    assert {s.inputs.shape[0] for (s,) in seen.layers[Labels.DATA].values()} == {7}

    one = Joined(model)
    dense = ggn(one, lambda f, t: both((f[:, :3], f[:, 3:]), t), (x, z), (y, w), layers_of(one))
    torch.testing.assert_close(product(asked), dense @ direction(one).flat)


def test_several_outputs_and_a_known_criterion_are_refused_in_words() -> None:
    model, inputs = Heads(as_tuple), (normal(7, 4), normal(7, 4))
    asked = objective(model, nn.CrossEntropyLoss(), inputs, torch.arange(7) % 3)
    with pytest.raises(ConfigError, match="the model's output is a tuple of 2"):
        ask(asked, GRADIENT_ONLY, layers_of(model))
    other = objective(model, both, inputs, (torch.arange(7) % 3, normal(7, 2)))
    with pytest.raises(
        UnsupportedEvidence, match="one tensor with the examples on its first axis, got a tuple of 2"
    ):
        ask(other, Needs(variance=True), layers_of(model))


# losses that a model returns itself


class Labeled(nn.Module):
    """A model in the manner of Hugging Face: a loss if there are labels."""

    def __init__(self, give: Callable[[Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.give, self.net = give, mlp().double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        f = self.net(x)
        return {"logits": f} if labels is None else self.give(F.cross_entropy(f, labels))


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize(
    "give",
    [lambda v: v, lambda v: {"loss": v}, lambda v: SimpleNamespace(loss=v)],
    ids=["scalar", "key", "attr"],
)
@pytest.mark.parametrize("batch", [dict, UserDict, tuple])
def test_a_batch_whose_model_returns_its_loss(
    batch: type, give: Callable[[Tensor], Any], micro_batch: int | None
) -> None:
    model, x, y = Labeled(give), normal(7, 4), torch.arange(7) % 3
    given = (x, y) if batch is tuple else batch({"x": x, "labels": y})
    asked = objective(model, None, given, micro_batch=micro_batch)
    value = F.cross_entropy(model.net(x), y)
    seen, blocks = ask(asked, wanting(Labels.DATA), layers_of(model), step=0), layers_of(model)
    assert seen.examples == 7
    torch.testing.assert_close(seen.loss, value.detach())
    torch.testing.assert_close(asked.loss(), value.detach())
    torch.testing.assert_close(asked(), value.detach())
    for name, g in gradients(model, value).items():
        torch.testing.assert_close(blocks.slots(seen.gradient)[name], g)


def test_what_a_models_own_loss_cannot_give_is_refused_in_words() -> None:
    model, x, y = Labeled(lambda v: v), normal(7, 4), torch.arange(7) % 3
    asked = objective(model, None, {"x": x, "labels": y})
    for needs in (PRODUCTS, wanting(Labels.MODEL)):
        with pytest.raises(
            UnsupportedEvidence, match=r"a loss that the model returns itself\n.*give a criterion"
        ):
            ask(asked, needs, layers_of(model))
    with pytest.raises(ConfigError, match="it returned a dict with keys logits"):
        ask(objective(model, None, {"x": x}), GRADIENT_ONLY, layers_of(model))
