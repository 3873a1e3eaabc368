"""Layers that spread each position over several, and a task whose network has one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from curvlab.tasks.digits import CLASSES, Digits


class Spreading(nn.Module):
    """``[n, s, i]`` to ``[n, s k, o]``: ``y[n, s k + j] = W[:, :, j]ᵀ x[n, s]``, W ``[i, o, k]``."""

    def __init__(self, i: int, o: int, k: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(i, o, k) / i**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nsi,iok->nsko", x, self.weight).flatten(1, 2)


@dataclass(frozen=True)
class Example(Digits):
    """Classify scikit-learn's digits, whose rows of pixels such a layer spreads over two positions each."""

    def model(self) -> nn.Module:
        rows, spreading = nn.Unflatten(1, (8, 8)), Spreading(8, 4, 2)
        return nn.Sequential(rows, spreading, nn.Tanh(), nn.Flatten(), nn.Linear(64, CLASSES))
