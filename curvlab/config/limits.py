"""What a configuration may hold at most: levels of nesting, and the digits of its numbers."""

from __future__ import annotations

import math
from typing import Any

from curvlab.config.locator import Path
from curvlab.protocols.bounds import LARGEST_FLOAT, LARGEST_INT, SMALLEST_INT

#: levels of tables and arrays, of which the deepest composition needs about ten
DEEPEST = 32


def too_deep(data: Any) -> Path | None:
    """Where plain data is nested deeper than ``DEEPEST`` levels, if anywhere; data that holds itself is."""
    waiting: list[tuple[Path, Any]] = [((), data)]
    while waiting:
        path, value = waiting.pop()
        if len(path) > DEEPEST:
            return path
        if isinstance(value, dict):
            waiting += [((*path, str(key)), inner) for key, inner in value.items()]
        elif isinstance(value, (list, tuple)):
            waiting += [((*path, index), inner) for index, inner in enumerate(value)]
    return None


def unusable(value: Any, *, infinite: bool = False) -> str:
    """Why a number can be no setting, or none that may be ``infinite``; empty if it can, or is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return ""
    if isinstance(value, int):
        return "" if SMALLEST_INT <= value <= LARGEST_INT else "the whole number is too large for 64 bits"
    if math.isnan(value):
        return "nan is not allowed as a setting"
    if math.isinf(value):
        return "" if infinite else f"{value} is not a finite number"
    if abs(value) > LARGEST_FLOAT:
        return f"{value} is larger than the largest float32, {LARGEST_FLOAT:.3g}"
    return ""
