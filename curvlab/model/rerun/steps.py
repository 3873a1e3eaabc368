"""One step of each recurrence: the new state from a projected input and the state before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

#: hidden state ``[n, h]``; of an LSTM, hidden and cell state
State = tuple[Tensor, ...]


@dataclass(frozen=True)
class Weights:
    """The parameters of one layer in one direction; gates are stacked along axis 0 in torch's order."""

    ih: Tensor
    hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    hr: Tensor | None = None  #: of an LSTM with ``proj_size``

    def projected(self, x: Tensor) -> Tensor:
        """The input's part of all gates ``[.., gates]``, of a whole sequence at once."""
        return F.linear(x, self.ih, self.bias_ih)

    def recalled(self, state: State) -> Tensor:
        """The hidden state's part of all gates ``[n, gates]``."""
        return F.linear(state[0], self.hh, self.bias_hh)


Step = Callable[[Tensor, State, Weights], State]


def lstm(x: Tensor, state: State, weights: Weights) -> State:
    """``c' = f c + i g``, ``h' = o tanh(c')``, projected if the module has ``proj_size``."""
    i, f, g, o = (x + weights.recalled(state)).chunk(4, dim=-1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    h = o.sigmoid() * c.tanh()
    return (h if weights.hr is None else F.linear(h, weights.hr)), c


def gru(x: Tensor, state: State, weights: Weights) -> State:
    """``h' = (1 − z) n + z h``; r multiplies the whole of ``W_hn h + b_hn``, its bias included."""
    x_r, x_z, x_n = x.chunk(3, dim=-1)
    h_r, h_z, h_n = weights.recalled(state).chunk(3, dim=-1)
    r, z = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
    n = (x_n + r * h_n).tanh()
    return (n + z * (state[0] - n),)


def tanh(x: Tensor, state: State, weights: Weights) -> State:
    """The new state is ``tanh(x + W_hh h + b_hh)``."""
    return ((x + weights.recalled(state)).tanh(),)


def relu(x: Tensor, state: State, weights: Weights) -> State:
    """The new state is ``relu(x + W_hh h + b_hh)``."""
    return (torch.relu(x + weights.recalled(state)),)


#: by the name that torch gives to the kind of recurrence, ``RNNBase.mode``
STEPS: Mapping[str, Step] = {"LSTM": lstm, "GRU": gru, "RNN_TANH": tanh, "RNN_RELU": relu}
