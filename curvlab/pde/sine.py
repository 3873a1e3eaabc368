"""The sine as an activation."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Sine(nn.Module):
    """``sin(z)``, entry by entry."""

    def forward(self, z: Tensor) -> Tensor:
        """The sine."""
        return torch.sin(z)
