"""Networks and batches: written in torch alone, so that every commit trains the same ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 10


class Attention(nn.Module):
    """Multi-head self-attention, a layer for each of its four matrices."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and a perceptron, each on normalized tokens and added to them."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Gray images to logits: patches, positions, blocks, the mean of the tokens."""

    def __init__(self, side: int, patch: int, dim: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cut = nn.Unfold(patch, stride=patch)
        self.embed = nn.Linear(patch**2, dim)
        self.position = nn.Parameter(torch.randn((side // patch) ** 2, dim) / 50)
        self.blocks = nn.Sequential(*(Block(dim, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.embed(self.cut(images).mT) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def perceptron(*widths: int) -> nn.Module:
    """Linear layers with relu between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convnet() -> nn.Module:
    """Two convolutions and two linear layers on 12 × 12 gray images."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 9, 32),
        nn.ReLU(),
        nn.Linear(32, CLASSES),
    )


@dataclass(frozen=True)
class Network:
    """How to make it, the shape of an input, and a batch."""

    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    batch: int

    def model(self) -> nn.Module:
        """The same weights every time."""
        torch.manual_seed(0)
        return self.make()

    def batches(self, count: int) -> list[tuple[Tensor, Tensor]]:
        """Random inputs and labels, the same every time."""
        generator = torch.Generator().manual_seed(1)
        return [
            (
                torch.rand(self.batch, *self.shape, generator=generator),
                torch.randint(0, CLASSES, (self.batch,), generator=generator),
            )
            for _ in range(count)
        ]


NETWORKS = {
    "mlp": Network(lambda: perceptron(64, 128, 128, CLASSES), (64,), 64),
    "convnet": Network(convnet, (1, 12, 12), 32),
    "vit": Network(lambda: VisionTransformer(8, 2, 32, 1, 2), (1, 8, 8), 16),
}
