"""The networks of the study on a GPU, of sizes that people train, and small twins; their data are random."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.tasks.gpt import Gpt

CLASSES = 10


class Residual(nn.Module):
    """Two convolutions beside a shortcut, each followed by a batch norm."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(i, o, 3, stride, padding=1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.norm2 = nn.Conv2d(o, o, 3, padding=1, bias=False), nn.BatchNorm2d(o)
        same = i == o and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(i, o, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, i, h, w]`` to ``[n, o, h / stride, w / stride]``."""
        inner = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(inner + self.shortcut(x))


def resnet18(width: int) -> nn.Module:
    """For small images: a stem of one convolution and four stages of two residual blocks."""
    widths = [width, width, 2 * width, 4 * width, 8 * width]
    stem = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    stages = []
    for k, (i, o) in enumerate(pairwise(widths)):
        stages += [Residual(i, o, 1 if k == 0 else 2), Residual(o, o, 1)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], CLASSES)]
    return nn.Sequential(*stem, *stages, *head)


def convnet() -> nn.Module:
    """A convolution and two linear layers on 12 × 12 images."""
    layers = [nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(288, 32), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(32, CLASSES))


@dataclass(frozen=True)
class Network:
    """How to make it, and a batch: images ``[n, 3, side, side]``, or ``length`` tokens of ``kinds``."""

    title: str
    make: Callable[[], nn.Module]
    batch: int
    side: int = 0
    length: int = 0
    kinds: int = CLASSES

    def model(self, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """The same weights every time, made on the CPU."""
        torch.manual_seed(0)
        return self.make().to(dtype=dtype, device=device)

    def batches(
        self, count: int, dtype: torch.dtype, device: torch.device
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The same few random batches over and over."""
        draw = torch.Generator("cpu").manual_seed(1)
        made = [self._batch(draw) for _ in range(count)]
        there = [
            (x.to(device, dtype) if x.is_floating_point() else x.to(device), y.to(device)) for x, y in made
        ]
        return cycle(there)

    def _batch(self, draw: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.length:
            text = torch.randint(0, self.kinds, (self.batch, self.length + 1), generator=draw)
            return text[:, :-1], text[:, 1:]
        images = torch.randn(self.batch, 3, self.side, self.side, generator=draw)
        return images, torch.randint(0, self.kinds, (self.batch,), generator=draw)


SMALL = Network("a small convolutional network", convnet, 64, side=12)

LARGE = {
    "resnet18": Network(
        "ResNet-18, 11.2 M parameters, 128 images of 32 × 32", lambda: resnet18(64), 128, side=32
    ),
    "gpt": Network(
        "a GPT of the size of GPT-2 small, 85 M parameters, 8 windows of 256 bytes",
        lambda: Gpt(characters=256, context=256, dim=768, depth=12, heads=12, hidden=3072),
        8,
        length=256,
        kinds=256,
    ),
}
TINY = {
    "resnet18": Network("ResNet-18 of 4 channels, 8 images of 8 × 8", lambda: resnet18(4), 8, side=8),
    "gpt": Network(
        "a GPT of width 16, 4 windows of 8 bytes",
        lambda: Gpt(characters=32, context=8, dim=16, depth=1, heads=2, hidden=32),
        4,
        length=8,
        kinds=32,
    ),
}
