"""Multi-layer perceptrons: what the small tasks train."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from torch import nn

Activation = Literal["relu", "tanh", "sigmoid"]

ACTIVATIONS: Mapping[Activation, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


def mlp(widths: Sequence[int], activation: Activation, *, linear: Sequence[int] = ()) -> nn.Sequential:
    """``fc1 … fcN`` from ``widths[0]`` inputs to ``widths[-1]`` outputs, ``activation`` between them.

    The last layer is linear, and so is every layer whose number (from 1) is in ``linear``.  Torch's
    own initialization, on torch's default device.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for k in range(1, len(widths)):
        layers[f"fc{k}"] = nn.Linear(widths[k - 1], widths[k])
        if k < len(widths) - 1 and k not in linear:
            layers[f"act{k}"] = ACTIVATIONS[activation]()
    return nn.Sequential(layers)


@torch.no_grad()
def initialize_sparsely(model: nn.Module, connections: int) -> None:
    """Each unit gets ``connections`` incoming weights from N(0, 1), the others and the biases zero.

    A unit's input then has the same scale whatever its layer's width, so that deep sigmoid networks
    start neither saturated nor blind.  Martens 2010, §5.
    """
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            kept = min(connections, layer.in_features)
            # the columns of the largest of random numbers are a uniform choice without repetition
            columns = torch.rand_like(layer.weight).topk(kept, dim=1).indices
            layer.weight.zero_().scatter_(1, columns, torch.randn_like(layer.weight[:, :kept]))
            if layer.bias is not None:
                layer.bias.zero_()
