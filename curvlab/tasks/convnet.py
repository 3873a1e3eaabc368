"""A small convolutional network: what the image tasks train beside multi-layer perceptrons."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn

from curvlab.tasks.mlp import ACTIVATIONS, Activation

#: so many, and two linear layers
CONVOLUTIONS = 3


def convnet(
    channels: Sequence[int], hidden: int, classes: int, activation: Activation, *, side: int
) -> nn.Sequential:
    """``conv1 … conv3``, ``fc1`` and ``fc2`` on gray images ``[n, 1, side, side]``.

    Convolutions are 3 × 3 and keep the image's size; the first two are each followed by a maximum over
    2 × 2, so ``fc1`` reads ``channels[2] · (side // 4)²`` numbers: far more than any other layer does.
    No normalization: an example's output depends on that example alone.  Torch's own initialization,
    on torch's default device.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    make = ACTIVATIONS[activation]
    for k, (before, after) in enumerate(zip((1, *channels[:-1]), channels, strict=True), start=1):
        layers[f"conv{k}"] = nn.Conv2d(before, after, kernel_size=3, padding=1)
        layers[f"act{k}"] = make()
        if k < len(channels):
            layers[f"pool{k}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(channels[-1] * (side // 4) ** 2, hidden)
    layers["act4"] = make()
    layers["fc2"] = nn.Linear(hidden, classes)
    return nn.Sequential(layers)
