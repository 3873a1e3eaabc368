"""``nn.LSTMCell``, ``nn.GRUCell`` and ``nn.RNNCell`` from linear maps."""

from __future__ import annotations

from torch import Tensor, nn

from curvlab.model.rerun import steps
from curvlab.model.rerun.steps import State, Step, Weights


def lstm_cell(
    module: nn.LSTMCell, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Hidden and cell state ``[n, h]`` after one step from ``input [n, i]``; without n if it has none."""
    h, c = _stepped(module, steps.lstm, input, hx, parts=2)
    return h, c


def gru_cell(module: nn.GRUCell, input: Tensor, hx: Tensor | None = None) -> Tensor:
    """The hidden state ``[n, h]`` after one step from ``input [n, i]``; without n if it has none."""
    return _stepped(module, steps.gru, input, None if hx is None else (hx,))[0]


def rnn_cell(module: nn.RNNCell, input: Tensor, hx: Tensor | None = None) -> Tensor:
    """As of a GRU cell, by the module's own nonlinearity."""
    step = steps.tanh if module.nonlinearity == "tanh" else steps.relu
    return _stepped(module, step, input, None if hx is None else (hx,))[0]


def _stepped(module: nn.RNNCellBase, step: Step, x: Tensor, state: State | None, parts: int = 1) -> State:
    weights = Weights(module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    batched = x.dim() == 2
    if state is None:
        state = (x.new_zeros(*x.shape[:-1], module.hidden_size),) * parts
    if not batched:
        x, state = x.unsqueeze(0), tuple(s.unsqueeze(0) for s in state)
    after = step(weights.projected(x), state, weights)
    return after if batched else tuple(s.squeeze(0) for s in after)
