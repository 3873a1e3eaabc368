"""The dtype in which numbers of a narrower one are summed, compared and multiplied."""

from __future__ import annotations

import torch


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 for a half: sums of halves lose digits, and LAPACK has no routine for them."""
    return torch.promote_types(dtype, torch.float32)
