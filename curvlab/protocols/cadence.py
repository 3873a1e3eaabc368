"""Cadence: what happens every so many steps."""

from __future__ import annotations


def is_due(step: int, every: int) -> bool:
    """Whether something that happens every ``every`` steps happens in step ``step``; in step 0 it does."""
    return step % every == 0
