"""Moving averages whose weights add up to one from the first value on."""

from __future__ import annotations


def newest_weight(decay: float, count: int) -> float:
    """The weight of the newest of ``count`` values in their bias-corrected moving average.

    ``(1 − β)/(1 − βᵏ)`` for decay β and count k: exactly 1 for the first value, and toward 1 − β later.
    ``mean ← (1 − w) · mean + w · value`` then is Adam's moving average with its bias correction folded in.
    """
    return (1 - decay) / (1 - decay**count)
