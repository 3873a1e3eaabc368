"""Rounding to a narrower dtype: to the nearest number, or to one of the two around it by chance."""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: bits of float32 that bfloat16 leaves out
DROPPED = 16


def stochastic(x: Tensor, generator: torch.Generator) -> Tensor:
    """``x`` as bfloat16, rounded up or down with probabilities that keep the mean.

    A number is between two of bfloat16; the nearer it is to one, the likelier it becomes it.  Increments
    below half a unit in the last place, which rounding to nearest loses, then add up on average.  Infinities
    and NaN stay what they are.  Float64 is rounded to float32 first.  Costs five passes and a random integer
    per four entries.
    """
    bits = x.to(torch.float32).contiguous().view(torch.int32)
    kept = _noise(bits, generator).add_(bits).bitwise_and_(-1 << DROPPED)
    # carries run into the kept bits as often as the dropped ones are large; those of a NaN, beyond them
    return kept.view(torch.float32).to(torch.bfloat16).where(x == x, math.nan)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers of ``DROPPED`` bits, of the shape of ``like``: four are a random integer's 64 bits."""
    count = like.numel()
    drawn = like.new_empty(-(-count // 4), dtype=torch.int64).random_(-(1 << 63), None, generator=generator)
    return drawn.view(torch.uint16)[:count].view(like.shape).to(torch.int32)
