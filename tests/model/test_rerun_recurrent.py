"""Recurrences computed again: outputs and all gradients of the fused call, for every option."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from curvlab.model.rerun.modules import rerun
from tests.model.rerunning import assert_equal_to_fused

D, H, T, N = 3, 4, 5, 6
LENGTHS = (2, 5, 3, 5, 1, 4)

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "deep": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "batch first": {"batch_first": True},
    "all": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "all without bias": {"num_layers": 2, "bidirectional": True, "bias": False},
}
KINDS: Mapping[str, tuple[type[nn.RNNBase], Mapping[str, Any]]] = {
    "lstm": (nn.LSTM, {}),
    "lstm projected": (nn.LSTM, {"proj_size": 2}),
    "gru": (nn.GRU, {}),
    "rnn tanh": (nn.RNN, {}),
    "rnn relu": (nn.RNN, {"nonlinearity": "relu"}),
}


def build(kind: str, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    made, own = KINDS[kind]
    return made(D, H, **own, **options).double()


def state(module: nn.RNNBase, *batch: int) -> Any:
    layers = module.num_layers * (1 + module.bidirectional)
    h = torch.randn(layers, *batch, module.proj_size or H, dtype=torch.float64, requires_grad=True)
    if module.mode != "LSTM":
        return h
    return h, torch.randn(layers, *batch, H, dtype=torch.float64, requires_grad=True)


def sequence(module: nn.RNNBase) -> Tensor:
    shape = (N, T, D) if module.batch_first else (T, N, D)
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_recurrence_equals_the_fused_one(kind: str, options: Mapping[str, Any]) -> None:
    module = build(kind, **options)
    x = sequence(module)
    assert_equal_to_fused(module, (x,))
    assert_equal_to_fused(module, (x, state(module, N)))
    assert_equal_to_fused(module, (), {"input": x, "hx": state(module, N)})


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_without_a_batch_equals_the_fused_one(kind: str, options: Mapping[str, Any]) -> None:
    module = build(kind, **options)
    x = torch.randn(T, D, dtype=torch.float64, requires_grad=True)
    assert_equal_to_fused(module, (x,))
    assert_equal_to_fused(module, (x, state(module)))


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_equal_the_fused_ones(kind: str, options: Mapping[str, Any]) -> None:
    module = build(kind, **options)
    x = torch.randn(T, N, D, dtype=torch.float64, requires_grad=True)
    unsorted = pack_padded_sequence(x, torch.tensor(LENGTHS), enforce_sorted=False)
    assert_equal_to_fused(module, (unsorted,), leaves=(x,))
    assert_equal_to_fused(module, (unsorted, state(module, N)), leaves=(x,))
    ordered = pack_sequence([x[:length, 0] for length in sorted(LENGTHS, reverse=True)])
    assert_equal_to_fused(module, (ordered, state(module, N)), leaves=(x,))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("options", [{}, {"bidirectional": True}, {"batch_first": True}])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_between_layers_draws_what_the_fused_call_draws(
    kind: str, options: Mapping[str, Any], packed: bool
) -> None:
    module = build(kind, num_layers=3, dropout=0.4, **options)
    x = sequence(module)
    lengths = torch.tensor(LENGTHS)
    given = pack_padded_sequence(x, lengths, module.batch_first, enforce_sorted=False) if packed else x
    assert_equal_to_fused(module, (given,), leaves=(x,))
    assert_equal_to_fused(module.eval(), (given,), leaves=(x,))


@pytest.mark.parametrize("kind", KINDS)
def test_partly_frozen_weights_and_one_step_and_one_sequence(kind: str) -> None:
    module = build(kind, num_layers=2)
    module.weight_hh_l0.requires_grad_(False)
    module.bias_ih_l1.requires_grad_(False)
    assert_equal_to_fused(module, (torch.randn(1, 1, D, dtype=torch.float64),))


@pytest.mark.parametrize("batch", [(), (N,)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "own"),
    [
        (nn.LSTMCell, {}),
        (nn.GRUCell, {}),
        (nn.RNNCell, {}),
        (nn.RNNCell, {"nonlinearity": "relu"}),
    ],
)
def test_a_cell_equals_the_fused_one(kind: Any, own: Any, bias: bool, batch: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    cell = kind(D, H, bias=bias, **own).double()
    x, h, c = (torch.randn(*batch, d, dtype=torch.float64, requires_grad=True) for d in (D, H, H))
    assert_equal_to_fused(cell, (x,))
    assert_equal_to_fused(cell, (x, (h, c) if kind is nn.LSTMCell else h))


def test_layout_is_the_modules_own() -> None:
    module = build("lstm", batch_first=True)
    x = sequence(module)
    fused, again = module(x)[0], rerun(module, (x,), {})[0]
    assert again.stride() == fused.stride()
