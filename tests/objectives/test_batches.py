"""Batches as the loader gives them: mappings, tuples, tensors; and which part of them a criterion gets."""

from __future__ import annotations

from collections import UserDict
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.errors import ConfigError
from curvlab.objectives.losses import CrossEntropy, Heads, MeanSquaredError
from curvlab.objectives.supervised import objective
from curvlab.protocols.needs import Labels, Needs
from tests.objectives.asking import ask, gradients, layers_of, mlp, normal, wanting

X, Y, Z = normal(7, 4), torch.arange(7) % 3, normal(7, 4, seed=2)


class Net(nn.Module):
    """Takes two inputs, one of them optional; returns logits in the manner of ``give``."""

    def __init__(self, give: Any = lambda f: f) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.give = mlp().double(), give

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Any:
        return self.give(self.net(x if bias is None else x + bias))


class Batch(NamedTuple):
    x: Tensor
    bias: Tensor
    y: Tensor


def by_batch(output: Any, batch: Any) -> Tensor:
    """Of the output and the whole batch."""
    return F.cross_entropy(output, batch["y"])


def require(asked: Any, model: Net, value: Tensor) -> None:
    """It has this value, and this gradient; micro-batches too."""
    blocks = layers_of(model)
    seen = ask(asked, wanting(Labels.EXACT) | Needs(products=1), blocks, step=0)
    assert seen.examples == 7
    torch.testing.assert_close(seen.loss, value.detach())
    torch.testing.assert_close(asked.loss(), value.detach())
    for name, g in gradients(model, value).items():
        torch.testing.assert_close(blocks.slots(seen.gradient)[name], g)
    v = blocks.read()
    assert seen.ggn is not None
    assert bool((seen.ggn @ v).flat.any())


@pytest.mark.parametrize("micro_batch", [None, 3])
@pytest.mark.parametrize(
    ("criterion", "batch"),
    [
        (by_batch, {"x": X, "bias": Z, "y": Y}),
        (by_batch, UserDict(x=X, bias=Z, y=Y)),
        (nn.CrossEntropyLoss(), {"labels": Y, "x": X, "bias": Z}),
        (F.cross_entropy, {"x": X, "bias": Z, "target": Y, "more": X}),
        (CrossEntropy(), (X, Z, Y)),
        (F.cross_entropy, [X, Z, Y]),
        (lambda f, y: F.cross_entropy(f, y), Batch(X, Z, Y)),
    ],
)
def test_a_batch_is_taken_apart_between_model_and_criterion(
    criterion: Any, batch: Any, micro_batch: int | None
) -> None:
    model = Net()
    require(
        objective(model, criterion, batch, micro_batch=micro_batch), model, F.cross_entropy(model(X, Z), Y)
    )


def test_a_pair_is_inputs_and_targets_and_a_tensor_is_both() -> None:
    model, coder = Net(), nn.Sequential(nn.Linear(4, 4)).double()
    require(objective(model, nn.CrossEntropyLoss(), (X, Y)), model, F.cross_entropy(model(X), Y))
    torch.testing.assert_close(objective(coder, F.mse_loss, X).loss(), F.mse_loss(coder(X), X).detach())


@pytest.mark.parametrize(
    "give", [lambda f: SimpleNamespace(logits=f, loss=None), lambda f: {"logits": f, "hidden": f.sum()}]
)
def test_a_loss_reads_the_logits_of_an_output(give: Any) -> None:
    model = Net(give)
    asked = objective(model, nn.CrossEntropyLoss(), {"x": X, "labels": Y})
    require(asked, model, F.cross_entropy(model.net(X), Y))
    plain = ask(objective(model.net, nn.CrossEntropyLoss(), X, Y), Needs(variance=True), layers_of(model.net))
    seen = ask(asked, Needs(variance=True), layers_of(model))
    assert seen.variance is not None
    assert plain.variance is not None
    torch.testing.assert_close(seen.variance.total, plain.variance.total)
    torch.testing.assert_close(seen.variance.along, plain.variance.along)
    heads = objective(
        Net(lambda f: {"kind": f, "size": f}),
        Heads((CrossEntropy(), MeanSquaredError()), names=("kind", "size")),
        {"x": X, "kind": Y, "size": normal(7, 3)},
    )
    expected = F.cross_entropy(model.net(X), Y) + F.mse_loss(model.net(X), normal(7, 3))
    torch.testing.assert_close(heads.loss(), expected.detach())


class Wrapper(nn.Module):
    """Passes on whatever it gets, as DistributedDataParallel does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


class Anything(Net):
    """Takes any keyword."""

    def forward(self, x: Tensor, **more: Any) -> Any:
        assert set(more) == {"y"}
        return super().forward(x)


def test_a_wrapper_takes_what_its_module_takes_and_any_keyword_means_all() -> None:
    for model in (Wrapper(Net()), Anything()):
        asked = objective(model, by_batch, {"x": X, "y": Y})
        torch.testing.assert_close(asked.loss(), F.cross_entropy(model(x=X, **_more(model)), Y).detach())


def _more(model: nn.Module) -> dict[str, Any]:
    return {"y": Y} if isinstance(model, Anything) else {}


@pytest.mark.parametrize(
    ("criterion", "batch", "said"),
    [
        (by_batch, {"pixels": X, "y": Y}, "entries pixels, y, and the forward of Net takes bias, x"),
        (nn.CrossEntropyLoss(), {"x": X, "y": Y}, "entries x, y; expected its targets as labels or label"),
        (nn.CrossEntropyLoss(), (X,), "a tuple of 1: there are no targets in it"),
    ],
)
def test_a_batch_in_which_something_is_missing_is_refused_in_words(
    criterion: Any, batch: Any, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        objective(Net(), criterion, batch)
