"""Rounding to a narrower dtype: to the nearest number, or to one of the two around it by chance."""

from __future__ import annotations

import torch
from torch import Tensor

#: bits of float32 that bfloat16 leaves out
DROPPED = 16


def stochastic(x: Tensor, generator: torch.Generator) -> Tensor:
    """Float32 as bfloat16, rounded up or down with probabilities that keep the mean.

    A number is between two of bfloat16; the nearer it is to one, the likelier it becomes it.  Increments
    below half a unit in the last place, which rounding to nearest loses, then add up on average.  Infinities
    and NaN stay what they are.  Costs four passes and one random number per entry.
    """
    bits = x.contiguous().view(torch.int32)
    noise = torch.randint(
        0, 1 << DROPPED, bits.shape, generator=generator, dtype=torch.int32, device=bits.device
    )
    # carries run into the kept bits as often as the dropped ones are large
    kept = torch.where(x.isfinite(), bits + noise, bits).bitwise_and_(-1 << DROPPED)
    return kept.view(torch.float32).to(torch.bfloat16)
