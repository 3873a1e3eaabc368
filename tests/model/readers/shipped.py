"""Layers of every kind that the core reads, with every option that changes how they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from curvlab.model.readers.attention import AttentionReader
from curvlab.model.readers.bare import BareReader
from curvlab.model.readers.bilinear import BilinearReader
from curvlab.model.readers.conv import ConvReader
from curvlab.model.readers.embedding import EmbeddingBagReader, EmbeddingReader
from curvlab.model.readers.linear import LinearReader
from curvlab.model.readers.norm import NormReader
from curvlab.model.readers.prelu import PReLUReader
from curvlab.model.readers.recurrent import RecurrentReader
from curvlab.model.readers.transposed import ConvTransposeReader
from curvlab.protocols.reader import LayerReader
from curvlab.testing.problems import labels, normal

Given = tuple[nn.Module, tuple[Any, ...]]


def x(*shape: int) -> torch.Tensor:
    """Numbers of this shape."""
    return normal(*shape, seed=1)


def indices(*shape: int) -> torch.Tensor:
    """Entries of a table of seven."""
    return labels(*shape, classes=7, seed=1)


def moved(norm: nn.Module) -> nn.Module:
    """A norm that has seen data, as it evaluates."""
    norm.running_mean.add_(0.3)
    norm.running_var.mul_(2.0)
    return norm.eval()


Q, K = x(3, 2, 4), x(3, 3, 4)
OFFSETS = torch.tensor([0, 2, 2, 5])

LINEAR: Mapping[str, Callable[[], Given]] = {
    "linear": lambda: (nn.Linear(3, 4), (x(5, 3),)),
    "linear without bias": lambda: (nn.Linear(3, 4, bias=False), (x(5, 3),)),
    "linear over positions": lambda: (nn.Linear(3, 4), (x(5, 2, 3),)),
    "linear over two axes of positions": lambda: (nn.Linear(3, 4), (x(3, 2, 2, 3),)),
    "linear, one example": lambda: (nn.Linear(3, 4), (x(3),)),
}

BILINEAR: Mapping[str, Callable[[], Given]] = {
    "bilinear": lambda: (nn.Bilinear(3, 2, 4), (x(5, 3), x(5, 2))),
    "bilinear over positions": lambda: (nn.Bilinear(3, 2, 4, bias=False), (x(5, 2, 3), x(5, 2, 2))),
    "bilinear, one example": lambda: (nn.Bilinear(3, 2, 4), (x(3), x(2))),
}

PRELU: Mapping[str, Callable[[], Given]] = {
    "prelu": lambda: (nn.PReLU(), (x(5, 3, 2),)),
    "prelu of channels": lambda: (nn.PReLU(3), (x(5, 3, 2),)),
    "prelu of features": lambda: (nn.PReLU(3), (x(5, 3),)),
}

CONV: Mapping[str, Callable[[], Given]] = {
    "conv1d": lambda: (nn.Conv1d(2, 3, 3, stride=2, padding=1, dilation=2), (x(4, 2, 7),)),
    "conv2d": lambda: (nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), (x(3, 2, 5, 4),)),
    "conv2d, reflected": lambda: (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (x(2, 2, 3, 4),)),
    "conv2d in groups": lambda: (nn.Conv2d(4, 6, 2, groups=2), (x(2, 4, 3, 3),)),
    "conv2d by channel": lambda: (nn.Conv2d(3, 3, 2, groups=3, bias=False), (x(2, 3, 3, 3),)),
    "conv2d, one position": lambda: (nn.Conv2d(2, 3, 2), (x(3, 2, 2, 2),)),
    "conv3d": lambda: (nn.Conv3d(1, 2, 2), (x(2, 1, 2, 3, 3),)),
    "conv1d, one example": lambda: (nn.Conv1d(2, 3, 3, padding="same"), (x(2, 5),)),
}

TRANSPOSED: Mapping[str, Callable[[], Given]] = {
    "transposed 1d": lambda: (nn.ConvTranspose1d(2, 3, 3, stride=2, padding=1, dilation=2), (x(4, 2, 5),)),
    "transposed 2d": lambda: (
        nn.ConvTranspose2d(2, 3, (3, 2), (2, 3), 1, output_padding=(1, 0), dilation=(1, 2)),
        (x(3, 2, 3, 2),),
    ),
    "transposed 2d of a size": lambda: (nn.ConvTranspose2d(2, 3, 3, stride=2), (x(2, 2, 2, 2), [6, 6])),
    "transposed 2d, one position": lambda: (nn.ConvTranspose2d(2, 3, 1), (x(3, 2, 1, 1),)),
    "transposed 3d": lambda: (nn.ConvTranspose3d(2, 3, 2, stride=2, bias=False), (x(2, 2, 1, 2, 1),)),
    "transposed 1d, one example": lambda: (nn.ConvTranspose1d(2, 3, 3, padding=2), (x(2, 5),)),
}

EMBEDDING: Mapping[str, Callable[[], Given]] = {
    "embedding": lambda: (nn.Embedding(7, 3), (indices(5),)),
    "embedding with padding": lambda: (nn.Embedding(7, 3, padding_idx=2), (indices(5, 4),)),
    "embedding, one index": lambda: (nn.Embedding(7, 3), (torch.tensor(3),)),
}

BAGS: Mapping[str, Callable[[], Given]] = {
    "bags": lambda: (nn.EmbeddingBag(7, 3, padding_idx=1), (indices(5, 4),)),
    "bags, summed": lambda: (nn.EmbeddingBag(7, 3, mode="sum"), (indices(5, 1),)),
    "bags with weights": lambda: (nn.EmbeddingBag(7, 3, mode="sum"), (indices(9), OFFSETS, x(9))),
    "bags by offsets": lambda: (nn.EmbeddingBag(7, 3, mode="mean"), (indices(9), OFFSETS)),
    "bags to the last offset": lambda: (
        nn.EmbeddingBag(7, 3, mode="sum", include_last_offset=True),
        (indices(9), torch.tensor([0, 2, 2, 5, 9])),
    ),
}

NORMS: Mapping[str, Callable[[], Given]] = {
    "layer norm": lambda: (nn.LayerNorm(4), (x(5, 4),)),
    "layer norm over positions": lambda: (nn.LayerNorm(4), (x(5, 3, 4),)),
    "layer norm of two axes": lambda: (nn.LayerNorm((3, 4)), (x(5, 3, 4),)),
    "layer norm without shift": lambda: (nn.LayerNorm(4, bias=False), (x(5, 4),)),
    "layer norm, one example": lambda: (nn.LayerNorm(4), (x(4),)),
    "rms norm": lambda: (nn.RMSNorm(4), (x(5, 3, 4),)),
    "group norm": lambda: (nn.GroupNorm(2, 4), (x(5, 4, 3, 2),)),
    "group norm of features": lambda: (nn.GroupNorm(2, 4), (x(5, 4),)),
    "batch norm 1d": lambda: (nn.BatchNorm1d(4), (x(5, 4),)),
    "batch norm 1d over positions": lambda: (nn.BatchNorm1d(4), (x(5, 4, 3),)),
    "batch norm 2d": lambda: (nn.BatchNorm2d(4), (x(5, 4, 3, 2),)),
    "batch norm 3d": lambda: (nn.BatchNorm3d(2), (x(3, 2, 2, 2, 2),)),
    "batch norm in evaluation": lambda: (moved(nn.BatchNorm2d(4)), (x(5, 4, 3, 2),)),
    "batch norm without statistics": lambda: (nn.BatchNorm1d(4, track_running_stats=False), (x(5, 4),)),
    "instance norm 1d": lambda: (nn.InstanceNorm1d(4, affine=True), (x(5, 4, 3),)),
    "instance norm 2d": lambda: (nn.InstanceNorm2d(4, affine=True), (x(5, 4, 3, 2),)),
    "instance norm 3d": lambda: (nn.InstanceNorm3d(2, affine=True), (x(2, 2, 2, 2, 2),)),
    "instance norm, one example": lambda: (nn.InstanceNorm2d(4, affine=True), (x(4, 3, 2),)),
    "instance norm in evaluation": lambda: (
        moved(nn.InstanceNorm1d(4, affine=True, track_running_stats=True)),
        (x(5, 4, 3),),
    ),
}

ATTENTION: Mapping[str, Callable[[], Given]] = {
    "attention": lambda: (nn.MultiheadAttention(4, 2, batch_first=True), (Q, Q, Q)),
    "attention, time first": lambda: (nn.MultiheadAttention(4, 2), (Q, Q, Q)),
    "attention without bias": lambda: (nn.MultiheadAttention(4, 2, bias=False, batch_first=True), (Q, K, K)),
    "attention of widths": lambda: (
        nn.MultiheadAttention(4, 1, kdim=3, vdim=2, batch_first=True),
        (Q, x(3, 3, 3), x(3, 3, 2)),
    ),
    "attention, one example": lambda: (nn.MultiheadAttention(4, 2), (Q[0], Q[0], Q[0])),
}

RECURRENT: Mapping[str, Callable[[], Given]] = {
    "lstm": lambda: (nn.LSTM(3, 2, batch_first=True), (x(4, 3, 3),)),
    "lstm, time first": lambda: (nn.LSTM(3, 2), (x(3, 2, 3),)),
    "lstm of two layers": lambda: (nn.LSTM(3, 2, 2, batch_first=True), (x(2, 2, 3),)),
    "lstm, projected": lambda: (nn.LSTM(3, 2, proj_size=1, batch_first=True), (x(2, 2, 3),)),
    "gru in two directions": lambda: (nn.GRU(3, 2, batch_first=True, bidirectional=True), (x(2, 2, 3),)),
    "rnn without bias": lambda: (nn.RNN(3, 2, bias=False, batch_first=True), (x(3, 2, 3),)),
    "lstm cell": lambda: (nn.LSTMCell(3, 2), (x(4, 3),)),
    "gru cell": lambda: (nn.GRUCell(3, 2), (x(4, 3),)),
    "rnn cell": lambda: (nn.RNNCell(3, 2, nonlinearity="relu"), (x(4, 3),)),
}


class Own(nn.Module):
    """A matrix, a scale and a shift of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(x(4, 3))
        self.scale, self.shift = nn.Parameter(torch.ones(4)), nn.Parameter(torch.zeros(4))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(given, self.matrix).tanh() * self.scale + self.shift


BARE: Mapping[str, Callable[[], Given]] = {
    "bare": lambda: (Own(), (x(5, 3),)),
    "bare over positions": lambda: (Own(), (x(5, 2, 3),)),
}

#: each reader with its layers
SPECIMENS: tuple[tuple[LayerReader, Mapping[str, Callable[[], Given]]], ...] = (
    (LinearReader(), LINEAR),
    (BilinearReader(), BILINEAR),
    (PReLUReader(), PRELU),
    (ConvReader(), CONV),
    (ConvTransposeReader(), TRANSPOSED),
    (EmbeddingReader(), EMBEDDING),
    (EmbeddingBagReader(), BAGS),
    (NormReader(), NORMS),
    (AttentionReader(), ATTENTION),
    (RecurrentReader(), RECURRENT),
    (BareReader(), BARE),
)
