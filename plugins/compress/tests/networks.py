"""Small networks of factorized layers."""

from __future__ import annotations

import torch
from torch import nn

from curvlab.testing.problems import DTYPE
from curvlab_compress.svd_layer import Split, decomposable, decomposed

#: layers of every kind that can be factorized, and the shape of their inputs
LAYERS = {
    "linear": (lambda: nn.Linear(5, 3), (2, 5)),
    "wide": (lambda: nn.Linear(3, 7, bias=False), (2, 4, 3)),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, stride=2, padding=1, padding_mode="circular"), (2, 3, 9)),
    "conv2d": (lambda: nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)), (2, 3, 8, 7)),
    "point": (lambda: nn.Conv2d(4, 3, 1, bias=False), (2, 4, 3, 3)),
    "valid": (lambda: nn.Conv2d(2, 3, 3, padding="valid"), (2, 2, 5, 6)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 2, 5, 6)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2), (1, 2, 3, 4, 3)),
}


def plain() -> nn.Sequential:
    """Two convolutions and two linear layers on ``[n, 1, 6, 6]``, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 5, 3, stride=2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(20, 6),
        nn.Tanh(),
        nn.Linear(6, 3),
    ).to(DTYPE)


def factorized(split: Split = "channel") -> nn.Sequential:
    """The same network in factors."""
    model = plain()
    for name, module in list(model.named_children()):
        if decomposable(module, split):
            setattr(model, name, decomposed(module, split))
    return model
