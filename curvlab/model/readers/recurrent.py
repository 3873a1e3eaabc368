"""``nn.LSTM``, ``nn.GRU``, ``nn.RNN`` and their cells: a block for each weight with its bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from curvlab.model.readers.affine import of_kind
from curvlab.model.rerun.modules import rerun
from curvlab.protocols.reader import CompositeReader, Projection, Specimens

KINDS = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell)


@dataclass(frozen=True)
class RecurrentReader(CompositeReader):
    """Reads recurrent layers with every option: layers, directions, projections, packed sequences, dropout.

    All gates of a layer and direction share the input of one block ``[gates·h, i]``; the steps of a sequence
    are positions.  Computing the steps one by one again costs several times the fused call.
    """

    def refuses(self, module: nn.Module) -> str | None:
        return of_kind(module, KINDS, "forward")

    def projections(self, module: nn.Module) -> tuple[Projection, ...]:
        found = []
        for name in module._parameters:
            if name.startswith("weight_"):
                bias = name.replace("weight_", "bias_", 1)
                found.append(Projection(name, bias if module._parameters.get(bias) is not None else None))
        return tuple(found)

    def rerun(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return rerun(module, args, kwargs)

    def specimens(self) -> Specimens:
        layers = (nn.LSTM, nn.GRU, nn.RNN)
        cells = (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
        return [
            *((layer(3, 2, batch_first=True), (torch.randn(4, 3, 3),)) for layer in layers),
            *((cell(3, 2), (torch.randn(4, 3),)) for cell in cells),
        ]
