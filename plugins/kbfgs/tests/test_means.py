"""The means of a batch: h̄ is the layer's mean output, and the slope the loss's gradient in a common shift."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.model.partition import partition
from curvlab.objectives.supervised import objective
from curvlab.protocols.needs import Labels, Needs
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, ClassesSecond, labels, normal
from curvlab.testing.reference import reference_context
from curvlab_kbfgs.means import Means, means_of

N = 6


def pictures(layer: nn.Module) -> nn.Module:
    return nn.Sequential(layer, nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]] = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)),
        normal(N, 4, seed=1),
        labels(N, classes=3, seed=2),
    ),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), ClassesSecond()),
        normal(N, 7, 4, seed=1),
        labels(N, 7, classes=3, seed=2),
    ),
    "convolution": (
        lambda: pictures(nn.Conv2d(2, 4, 3, stride=2, padding=1)),
        normal(N, 2, 6, 6, seed=1),
        labels(N, classes=3, seed=2),
    ),
    "groups": (
        lambda: pictures(nn.Conv2d(4, 6, 3, groups=2)),
        normal(N, 4, 5, 5, seed=1),
        labels(N, classes=3, seed=2),
    ),
    "sequence": (
        lambda: pictures(nn.Conv1d(3, 4, 2, dilation=2)),
        normal(N, 3, 8, seed=1),
        labels(N, classes=3, seed=2),
    ),
}


def observed(name: str) -> tuple[nn.Module, Means, Tensor, Tensor]:
    """The model, means of its first layer, that layer's outputs, and the gradient in its bias."""
    build, x, y = CASES[name]
    torch.manual_seed(0)
    model = build()
    model(x.float())
    model = model.to(DTYPE)
    blocks, outputs = partition(model, lambda layer: True), list[Tensor]()
    model[0].register_forward_hook(lambda module, args, output: outputs.append(output.detach()))
    needs = Needs.statistics(Labels.DATA)
    seen = objective(model, nn.CrossEntropyLoss(), x, y).evaluate(needs, blocks, reference_context())
    found = means_of(seen.layers[Labels.DATA]["0"], blocks.read()["0"], seen)
    assert found is not None
    return model, found, outputs[0], seen.gradient["0"][:, -1]


@pytest.mark.parametrize("name", CASES)
def test_the_means_are_those_of_outputs_and_of_the_gradient_in_the_bias(name: str) -> None:
    model, found, h, bias = observed(name)
    channels_last = h if isinstance(model[0], nn.Linear) else h.flatten(2).mT
    assert_close(found.h, channels_last.flatten(0, -2).mean(0), dimension=100)
    assert_close(found.slope, bias, dimension=100)


def test_several_terms_are_a_mean_of_outputs_and_a_sum_of_slopes() -> None:
    build, x, y = CASES["linear"]
    model = build().to(DTYPE)
    blocks = partition(model, lambda layer: True)
    seen = objective(model, nn.CrossEntropyLoss(), x, y).evaluate(
        Needs.statistics(Labels.DATA), blocks, reference_context()
    )
    (term,) = seen.layers[Labels.DATA]["0"]
    empty = replace(term, inputs=term.inputs[:0], grads=None if term.grads is None else term.grads[:, :0])
    one = means_of((term,), blocks.read()["0"], seen)
    both = means_of((term, term, empty), blocks.read()["0"], seen)
    assert one is not None
    assert both is not None
    assert_close(both.h, one.h)
    assert_close(both.slope, 2 * one.slope)
    assert means_of((empty,), blocks.read()["0"], seen) is None


def test_a_convolution_has_one_scale() -> None:
    """Σ_s ½‖h_s − t_s‖² has Γ = T·I: the change of the slope is T times that of h̄, to rounding."""
    torch.manual_seed(0)
    layer = nn.Conv1d(3, 2, 2).to(DTYPE)
    x = normal(N, 3, 5, seed=1)
    blocks, before = partition(layer, lambda name: True), None

    def criterion(h: Tensor, t: Tensor) -> Tensor:
        return 0.5 * F.mse_loss(h, t, reduction="sum") / len(h)

    t, changes = normal(N, 2, 4, seed=2), list[Means]()
    (name,) = blocks.layout.names
    for _ in range(2):
        seen = objective(layer, criterion, x, t).evaluate(
            Needs.statistics(Labels.DATA), blocks, reference_context()
        )
        now = means_of(seen.layers[Labels.DATA][name], blocks.read()[name], seen)
        assert now is not None
        if before is not None:
            changes.append(now - before)
        before = now
        blocks.subtract_(seen.gradient, 0.1)
    assert float(changes[0].h.norm()) > 1e-3
    assert_close(changes[0].slope, 4 * changes[0].h, dimension=100)
