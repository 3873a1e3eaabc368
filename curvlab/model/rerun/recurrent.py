"""``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` from linear maps.

The input projection of a layer in one direction is one ``F.linear`` over the whole sequence, the hidden
one is one ``F.linear`` a step.  A call costs about ten small kernels a step, several times a fused call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from curvlab.model.rerun.steps import STEPS, State, Step, Weights


@dataclass(frozen=True)
class Sequences:
    """The layout of n sequences: ``[t, n, d]``, or packed ``[rows, d]`` with the number of rows by step."""

    sizes: tuple[int, ...] | None = None

    def projected(self, weights: Weights, x: Tensor) -> Tensor:
        """The input's part of all gates, from rows that lead with the sequences, as examples do."""
        if self.sizes is not None:
            return weights.projected(x)
        return weights.projected(x.transpose(0, 1)).transpose(0, 1)

    def split(self, x: Tensor) -> tuple[Tensor, ...]:
        """``[n_t, d]`` of every step."""
        return x.unbind(0) if self.sizes is None else torch.split(x, list(self.sizes))

    def joined(self, by_step: Sequence[Tensor]) -> Tensor:
        """The inverse of ``split``."""
        return torch.stack(list(by_step)) if self.sizes is None else torch.cat(list(by_step))


def recurrent(module: nn.RNNBase, input: Tensor | PackedSequence, hx: Any = None) -> tuple[Any, Any]:
    """Outputs and last state as the module returns them, layouts of its inputs included."""
    if isinstance(input, PackedSequence):
        data, sizes, order, back = input
        state = _start(module, data, int(sizes[0]), hx)
        if order is not None and hx is not None:  # a given state is in the user's order
            state = tuple(s.index_select(1, order) for s in state)
        data, last = _layers(module, Sequences(tuple(sizes.tolist())), data, state)
        if back is not None:
            last = tuple(s.index_select(1, back) for s in last)
        return PackedSequence(data, sizes, order, back), _returned(module, last)
    batched = input.dim() == 3
    x = input if batched else input.unsqueeze(1)
    if batched and module.batch_first:
        x = x.transpose(0, 1)
    if not batched and hx is not None:
        hx = tuple(s.unsqueeze(1) for s in _as_state(hx))
    y, last = _layers(module, Sequences(), x, _start(module, x, x.shape[1], hx))
    if not batched:
        y, last = y.squeeze(1), tuple(s.squeeze(1) for s in last)
    return (y.transpose(0, 1) if batched and module.batch_first else y), _returned(module, last)


def _as_state(hx: Any) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _returned(module: nn.RNNBase, state: State) -> Tensor | State:
    return state if module.mode == "LSTM" else state[0]


def _start(module: nn.RNNBase, x: Tensor, n: int, hx: Any) -> State:
    """The state before the first step ``[layers · directions, n, h]``, zeros if none is given."""
    if hx is not None:
        return _as_state(hx)
    widths = [module.proj_size or module.hidden_size]
    if module.mode == "LSTM":
        widths.append(module.hidden_size)
    return tuple(x.new_zeros(module.num_layers * (1 + module.bidirectional), n, width) for width in widths)


def _layers(module: nn.RNNBase, sequences: Sequences, x: Tensor, start: State) -> tuple[Tensor, State]:
    """Outputs of the last layer and the last states of all of them."""
    step, directions = STEPS[module.mode], 1 + bool(module.bidirectional)
    ends: list[State] = []
    for layer in range(module.num_layers):
        outputs = []
        for direction in range(directions):
            weights = _weights(module, layer, "_reverse" if direction else "")
            state = tuple(s[len(ends)] for s in start)
            by_step = sequences.split(sequences.projected(weights, x))
            y, end = _run(by_step, state, step, weights, backwards=bool(direction))
            outputs.append(sequences.joined(y))
            ends.append(end)
        x = outputs[0] if directions == 1 else torch.cat(outputs, dim=-1)
        if layer < module.num_layers - 1:  # the same call, on the same shape, as the fused one draws from
            x = F.dropout(x, module.dropout, module.training)
    return x, tuple(torch.stack(parts) for parts in zip(*ends, strict=True))


def _weights(module: nn.RNNBase, layer: int, suffix: str) -> Weights:
    def of(name: str, there: bool = True) -> Any:
        return getattr(module, f"{name}_l{layer}{suffix}") if there else None

    return Weights(
        of("weight_ih"),
        of("weight_hh"),
        of("bias_ih", module.bias),
        of("bias_hh", module.bias),
        of("weight_hr", module.proj_size > 0),
    )


def _run(
    projected: Sequence[Tensor], start: State, step: Step, weights: Weights, backwards: bool
) -> tuple[list[Tensor], State]:
    """One layer in one direction: hidden states by step, in the order of time, and the last state.

    Packed sequences stand in the order of their lengths, so those that have ended, or have not begun
    when read backwards, are the last rows.
    """
    order = projected[::-1] if backwards else projected
    state = tuple(s[: order[0].shape[0]] for s in start)
    outputs, ended = [], []
    for x in order:
        now, held = x.shape[0], state[0].shape[0]
        if now < held:
            ended.append(tuple(s[now:] for s in state))
            state = tuple(s[:now] for s in state)
        elif now > held:
            state = tuple(torch.cat((s, first[held:now])) for s, first in zip(state, start, strict=True))
        state = step(x, state, weights)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    return (outputs[::-1] if backwards else outputs), state
