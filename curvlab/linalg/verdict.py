"""Decisions about values that also work without values: a dry run computes with shapes alone."""

from __future__ import annotations

from torch import Tensor


def holds(condition: Tensor) -> bool:
    """Whether a condition on values holds; on the meta device, which has shapes and no values, it does."""
    return condition.is_meta or bool(condition)
