"""Layers that are called on other rows than the examples: experts, time first, other batch sizes, none."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from curvlab.errors import ConfigError
from curvlab.objectives.supervised import objective
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels
from curvlab.protocols.rows import rows_of
from tests.objectives.asking import EVERY, ask, gradients, layers_of, normal, wanting

MSE = nn.MSELoss(reduction="sum")


class Experts(nn.Module):
    """Sends each example to one of three experts; the last gets none."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 5)
        self.experts = nn.ModuleList(nn.Linear(5, 3) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.gate(x))
        to = (x[:, 0] > 0.3).long()
        out = x.new_zeros(len(x), 3)
        for k, expert in enumerate(self.experts):
            out = out.index_add(0, (to == k).nonzero()[:, 0], expert(h[to == k]))
        return out


class Other(nn.Module):
    """One layer on the examples and on a single row of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.own = nn.Linear(4, 3), nn.Parameter(torch.ones(1, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.layer(self.own)


class TimeFirst(nn.Module):
    """Takes ``[t, n, d]``, or ``[n, t, d]``."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.axis, self.layer, self.out = axis, nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.layer(x))).mean(self.axis)


def seen_by(model: nn.Module, x: Tensor, y: Tensor, micro_batch: int | None = None) -> Evaluation:
    asked = objective(model, MSE, x, y, micro_batch=micro_batch)
    return ask(asked, wanting(*EVERY, samples=2), layers_of(model), step=0)


def factors(seen: Evaluation, kind: Labels, name: str) -> tuple[Tensor, Tensor]:
    """A and B of a Kronecker-factored estimate, by what every estimator reads."""
    rows = rows_of("test", name, seen.layers[kind][name], seen, "expand", seen.gradient.dtype)
    assert rows.g is not None
    return rows.a_weight * rows.a.mT @ rows.a, rows.g_weight * rows.g.mT @ rows.g


@pytest.mark.parametrize("micro_batch", [None, 2, 3])
def test_an_experts_gradient_factor_is_the_mean_over_all_examples(micro_batch: int | None) -> None:
    torch.manual_seed(0)
    model, x, y = Experts().double(), normal(7, 4), normal(7, 3, seed=1)
    seen = seen_by(model, x, y, micro_batch)
    h, residual = torch.tanh(model.gate(x)).detach(), 2.0 * (model(x) - y).detach()
    mine = x[:, 0] <= 0.3
    assert 0 < int(mine.sum()) < 7
    A, B = factors(seen, Labels.DATA, "experts.0")
    inputs = torch.cat([h[mine], torch.ones(int(mine.sum()), 1, dtype=h.dtype)], 1)
    torch.testing.assert_close(A, inputs.mT @ inputs / mine.sum())  # over the tokens it had
    torch.testing.assert_close(B, residual[mine].mT @ residual[mine] / 7)  # over the examples of the loss
    _, exact = factors(seen, Labels.EXACT, "experts.0")
    torch.testing.assert_close(exact, torch.eye(3, dtype=h.dtype) * 2.0 * mine.sum() / 7)


def test_an_expert_without_tokens_has_no_statistics_and_a_gradient_of_zero() -> None:
    torch.manual_seed(0)
    model, x, y = Experts().double(), normal(7, 4), normal(7, 3, seed=1)
    blocks = layers_of(model)
    seen = ask(objective(model, MSE, x, y), wanting(Labels.DATA, factored=True), blocks, step=0)
    assert set(seen.layers[Labels.DATA]) == {"gate", "experts.0", "experts.1"}
    assert not bool(seen.gradient["experts.2"].any())
    assert not seen.absent  # autograd gives it a gradient, of zero
    for name, g in gradients(model, MSE(model(x), y) / 7).items():
        torch.testing.assert_close(blocks.slots(seen.gradient)[name], g)


@pytest.mark.parametrize("make", [Experts, Other])
@pytest.mark.parametrize("factored", [True, False])
def test_rows_of_any_number_explain_the_gradient(make: Callable[[], nn.Module], factored: bool) -> None:
    torch.manual_seed(0)
    model, x, y = make().double(), normal(7, 4), normal(7, 3, seed=1)
    blocks = layers_of(model)
    for micro_batch in (None, 3):
        asked = objective(model, MSE, x, y, micro_batch=micro_batch)
        seen = ask(asked, wanting(Labels.DATA, factored=factored), blocks, step=0)
        for name, g in gradients(model, MSE(model(x), y) / 7).items():
            torch.testing.assert_close(blocks.slots(seen.gradient)[name], g)
    assert blocks.untapped == blocks.unread.keys()


def test_time_first_has_the_statistics_of_examples_first() -> None:
    x, y = normal(7, 5, 4), normal(7, 3, seed=1)
    first, second = TimeFirst(1).double(), TimeFirst(0).double()
    a, b = seen_by(first, x, y), seen_by(second, x.mT.permute(2, 0, 1).contiguous(), y)
    for kind, layers in a.layers.items():
        for name, (stats,) in layers.items():
            (other,) = b.layers[kind][name]
            torch.testing.assert_close(other.inputs, stats.inputs)
            torch.testing.assert_close(other.grads, stats.grads)


def test_axes_that_may_both_be_the_examples_are_refused_in_words() -> None:
    x, y = normal(6, 3, 4), normal(3, 3)
    with pytest.raises(ConfigError, match=r"leading axes \[6, 3\] in a batch of 3 examples"):
        seen_by(TimeFirst(0).double(), x, y)


class Auto(nn.Module):
    """Computes in bfloat16 inside."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(x).float()


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_rows_under_autocast_are_in_the_dtype_of_the_layers_output(micro_batch: int | None) -> None:
    model, x, y = Auto(), normal(7, 4).float(), normal(7, 3).float()
    seen = seen_by(model, x, y, micro_batch)
    for kind, layers in seen.layers.items():
        assert set(layers) == {"net.0", "net.2"}
        for (stats,) in layers.values():
            assert stats.inputs.dtype == torch.bfloat16
            assert kind is Labels.NONE or stats.grads.dtype == torch.bfloat16
