"""Kinds of layers of ``torch.nn``, each in a small model: what the support matrix tries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True)
class Case:
    """A model around one kind of layer, and the shape of its input without the batch."""

    model: Callable[[], nn.Module]
    shape: tuple[int, ...]
    tokens: bool = False

    def inputs(self) -> Tensor:
        """Six examples."""
        if self.tokens:
            return torch.randint(0, 5, (6, *self.shape))
        return torch.randn(6, *self.shape)


class First(nn.Module):
    """The first output of a layer that has several, on its input ``times`` times; means over positions."""

    def __init__(self, layer: nn.Module, times: int = 1) -> None:
        super().__init__()
        self.layer, self.times = layer, times

    def forward(self, x: Tensor) -> Tensor:
        """``[n, *]`` to ``[n, *]``."""
        found: Any = self.layer(*(x for _ in range(self.times)))
        return found[0] if isinstance(found, tuple) else found


class Own(nn.Module):
    """A scale that no layer of torch's holds."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 3]``."""
        return x * self.scale


class Quadratic(nn.Module):
    """A parameter that is used in no way that is read."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 3]``."""
        return x @ self.matrix @ self.matrix


class Matrix(nn.Module):
    """A matrix of the model's own, used by ``F.linear``."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 4]`` to ``[n, 3]``."""
        return nn.functional.linear(x, self.matrix)


class Tied(nn.Module):
    """Token to token, through one matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        """``[n]`` to ``[n, 5]``."""
        found: Tensor = self.head(self.embedding(x).tanh())
        return found


class Mean(nn.Module):
    """Over all axes but the first and the one after it."""

    def forward(self, x: Tensor) -> Tensor:
        """``[n, c, *]`` to ``[n, c]``."""
        return x.flatten(2).mean(-1)


class Positions(nn.Module):
    """Mean over positions."""

    def forward(self, x: Tensor) -> Tensor:
        """``[n, s, c]`` to ``[n, c]``."""
        return x.mean(1)


def of_space(layer: Callable[[], nn.Module], *shape: int) -> Case:
    """A layer of channels and space."""
    return Case(lambda: nn.Sequential(layer(), Mean()), shape)


def of_steps(layer: Callable[[], nn.Module], *shape: int, times: int = 1, tokens: bool = False) -> Case:
    """A layer of sequences, examples first."""
    return Case(lambda: nn.Sequential(First(layer(), times), Positions()), shape, tokens)


def frozen(layer: nn.Module, name: str) -> nn.Module:
    """A layer of which a parameter is frozen."""
    layer.get_parameter(name).requires_grad_(False)
    return layer


#: the layers that every combination of labels, structures and precisions is tried on
LAYERS: Mapping[str, Case] = {
    "`nn.Linear`": Case(lambda: nn.Linear(4, 3), (4,)),
    "`nn.Linear` over positions": Case(lambda: nn.Sequential(nn.Linear(4, 3), Positions()), (5, 4)),
    "`nn.Conv2d`": of_space(lambda: nn.Conv2d(2, 3, 2, stride=2), 2, 4, 4),
    "`nn.Conv2d`, grouped": of_space(lambda: nn.Conv2d(2, 4, 2, groups=2), 2, 3, 3),
}

_WIDE = {"batch_first": True, "dropout": 0.0}

#: everything else that a model is likely to hold
OTHERS: Mapping[str, Case] = {
    "`nn.Linear`, its bias frozen": Case(lambda: frozen(nn.Linear(4, 3), "bias"), (4,)),
    "`nn.Linear`, called twice": Case(lambda: nn.Sequential(*(2 * [nn.Linear(3, 3)])), (3,)),
    "`nn.Conv1d`": of_space(lambda: nn.Conv1d(2, 3, 3), 2, 6),
    "`nn.Conv3d`": of_space(lambda: nn.Conv3d(1, 3, 2), 1, 3, 3, 3),
    "`nn.Bilinear`": Case(lambda: First(nn.Bilinear(4, 4, 3), 2), (4,)),
    "`nn.ConvTranspose1d`": of_space(lambda: nn.ConvTranspose1d(2, 3, 2), 2, 4),
    "`nn.ConvTranspose2d`": of_space(lambda: nn.ConvTranspose2d(2, 3, 2), 2, 3, 3),
    "`nn.ConvTranspose2d`, grouped": of_space(lambda: nn.ConvTranspose2d(2, 4, 2, groups=2), 2, 3, 3),
    "`nn.ConvTranspose3d`": of_space(lambda: nn.ConvTranspose3d(2, 3, 2), 2, 2, 2, 2),
    "`nn.Embedding`": of_steps(lambda: nn.Embedding(5, 3), 4, tokens=True),
    "`nn.Embedding`, `max_norm`": of_steps(lambda: nn.Embedding(5, 3, max_norm=1.0), 4, tokens=True),
    "`nn.Embedding` tied to `nn.Linear`": Case(Tied, (), tokens=True),
    "`nn.EmbeddingBag`": Case(lambda: nn.EmbeddingBag(5, 3), (4,), tokens=True),
    '`nn.EmbeddingBag`, `mode="max"`': Case(lambda: nn.EmbeddingBag(5, 3, mode="max"), (4,), tokens=True),
    "`nn.LayerNorm`": Case(lambda: nn.LayerNorm(4), (4,)),
    "`nn.RMSNorm`": Case(lambda: nn.RMSNorm(4), (4,)),
    "`nn.GroupNorm`": of_space(lambda: nn.GroupNorm(2, 4), 4, 3),
    "`nn.BatchNorm1d`": Case(lambda: nn.BatchNorm1d(4), (4,)),
    "`nn.BatchNorm2d`": of_space(lambda: nn.BatchNorm2d(3), 3, 2, 2),
    "`nn.BatchNorm3d`": of_space(lambda: nn.BatchNorm3d(3), 3, 2, 2, 2),
    "`nn.SyncBatchNorm`": of_space(lambda: nn.SyncBatchNorm(3).eval(), 3, 2, 2),
    "`nn.InstanceNorm1d`": Case(
        lambda: nn.Sequential(nn.InstanceNorm1d(3, affine=True), nn.Tanh(), Mean()), (3, 4)
    ),
    "`nn.InstanceNorm2d`": Case(
        lambda: nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.Tanh(), Mean()), (3, 2, 2)
    ),
    "`nn.InstanceNorm3d`": Case(
        lambda: nn.Sequential(nn.InstanceNorm3d(3, affine=True), nn.Tanh(), Mean()), (3, 2, 2, 2)
    ),
    "`nn.PReLU`": Case(nn.PReLU, (3,)),
    "`nn.MultiheadAttention`": of_steps(lambda: nn.MultiheadAttention(4, 2, batch_first=True), 5, 4, times=3),
    "`nn.TransformerEncoderLayer`": of_steps(lambda: nn.TransformerEncoderLayer(4, 2, 5, **_WIDE), 5, 4),
    "`nn.TransformerDecoderLayer`": of_steps(
        lambda: nn.TransformerDecoderLayer(4, 2, 5, **_WIDE), 5, 4, times=2
    ),
    "`nn.Transformer`": of_steps(lambda: nn.Transformer(4, 2, 1, 1, 5, **_WIDE), 5, 4, times=2),
    "`nn.LSTM`": of_steps(lambda: nn.LSTM(4, 3, batch_first=True), 5, 4),
    "`nn.GRU`": of_steps(lambda: nn.GRU(4, 3, batch_first=True), 5, 4),
    "`nn.RNN`": of_steps(lambda: nn.RNN(4, 3, batch_first=True), 5, 4),
    "`nn.LSTMCell`": Case(lambda: First(nn.LSTMCell(4, 3)), (4,)),
    "`nn.GRUCell`": Case(lambda: First(nn.GRUCell(4, 3)), (4,)),
    "`nn.RNNCell`": Case(lambda: First(nn.RNNCell(4, 3)), (4,)),
    "`weight_norm` of `nn.Linear`": Case(lambda: parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
    "`spectral_norm` of `nn.Linear`": Case(
        lambda: parametrizations.spectral_norm(nn.Linear(4, 3)).eval(), (4,)
    ),
    "`F.linear` by a parameter": Case(Matrix, (4,)),
    "a scale of the model's own": Case(Own, (3,)),
    "a parameter used otherwise": Case(Quadratic, (3,)),
}
