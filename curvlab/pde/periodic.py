"""Periodic coordinates: a network that has a period exactly, by the features it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


class Periodic(nn.Module):
    """Features ``cos(2π k x/L)`` and ``sin(2π k x/L)``, k = 1 … ``harmonics``, of periodic coordinates.

    ``periods`` maps numbers of coordinates to their periods L; other coordinates are read as they are.
    Stands before the first layer, which reads ``width(d)`` features of d coordinates.
    """

    def __init__(self, periods: Mapping[int, float], harmonics: int = 1) -> None:
        super().__init__()
        self.periods, self.harmonics = dict(periods), harmonics

    def width(self, coordinates: int) -> int:
        """Features of so many coordinates."""
        return coordinates + len(self.periods) * (2 * self.harmonics - 1)

    def forward(self, x: Any) -> Any:
        """Features of points ``[n, d]``."""
        parts = []
        for k in range(x.shape[1]):
            column = x[:, k : k + 1]
            if k not in self.periods:
                parts.append(column)
                continue
            for h in range(1, self.harmonics + 1):
                angle = column * (2 * math.pi * h / self.periods[k])
                parts += [torch.cos(angle), torch.sin(angle)]
        return torch.cat(parts, 1)
