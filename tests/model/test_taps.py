"""Taps: what is recorded of a forward pass, when, and what is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvlab.model.partition import partition
from curvlab.model.taps import recording


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_calls_are_recorded_in_order_and_grouped_by_block() -> None:
    layer = nn.Linear(3, 3)
    model = nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 3), layer)
    blocks = partition(model, lambda _: True)
    with recording(blocks) as tape:
        model(torch.randn(2, 3))
    assert [c.block.name for c in tape.calls] == ["0", "2", "0"]
    assert tape.by_block() == {"0": [0, 2], "2": [1]}


def test_gradients_arrive_before_an_activation_changes_the_output_in_place() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    blocks = partition(model, lambda _: True)
    x = torch.randn(5, 3, dtype=torch.float64)
    with recording(blocks) as tape:
        loss = model(x).square().sum()
    grads = torch.autograd.grad(loss, tape.edges, retain_graph=True)
    truth = torch.autograd.grad(loss, [model[0].weight, model[2].weight])
    for call, g, true in zip(tape.calls, grads, truth, strict=True):
        mine = torch.einsum("nso,nsi->oi", call.grads(g), call.inputs())
        torch.testing.assert_close(mine[:, :-1], true)


def test_an_output_that_nobody_used_has_a_zero_gradient() -> None:
    model = nn.Linear(3, 2)
    with recording(partition(model, lambda _: True)) as tape:
        model(torch.randn(4, 3))
    assert torch.equal(tape.calls[0].grads(None), torch.zeros(4, 1, 2))


def test_nothing_is_recorded_without_a_graph() -> None:
    model = nn.Linear(3, 2)
    with recording(partition(model, lambda _: True)) as tape, torch.no_grad():
        model(torch.randn(4, 3))
    assert tape.calls == []


def test_hooks_are_gone_afterwards_even_after_an_error() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    blocks = partition(model, lambda _: True)

    def fail() -> None:
        with recording(blocks):
            assert hooks(model) == 2
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        fail()
    assert hooks(model) == 0


def test_layers_known_not_to_explain_their_gradient_are_not_listened_to() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    blocks = partition(model, lambda _: True)
    blocks.untapped.add("0")
    with recording(blocks) as tape:
        model(torch.randn(4, 3))
    assert [c.block.name for c in tape.calls] == ["1"]
