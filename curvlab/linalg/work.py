"""The dtype in which numbers of a narrower one are summed, compared and multiplied."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

#: relative error of a product whose factors are rounded to 11 bits
TF32 = 2.0**-10


@cache
def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 for a half: sums of halves lose digits, and LAPACK has no routine for them."""
    return torch.promote_types(dtype, torch.float32)


def without_autocast(device: torch.device) -> AbstractContextManager[Any]:
    """Inside, products are in the dtypes of their operands, whatever autocast is on around them."""
    on = torch.is_autocast_enabled(device.type)
    return torch.autocast(device.type, enabled=False) if on else nullcontext()


def autocast_rounding(device: torch.device) -> float:
    """The rounding unit of the autocast that is on, or 0."""
    if not torch.is_autocast_enabled(device.type):
        return 0.0
    return float(torch.finfo(torch.get_autocast_dtype(device.type)).eps)


def tf32_rounding(t: Tensor) -> float:
    """Relative error of a product on a GPU of float32 that torch may compute in TF32; 0 elsewhere."""
    return TF32 if t.is_cuda and t.dtype == torch.float32 else 0.0
