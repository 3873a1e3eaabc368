"""Portions: how many of the examples there are, as a fraction or as a count."""

from __future__ import annotations

import math
from typing import Annotated

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Bounds, Share

#: a float in (0, 1] is a fraction, an int from 2 is a count
Portion = Annotated[int, Bounds(least=2)] | Share

#: a product such as 1.1 · 10 is a little more than 11 and must not become 12
ROUNDING = 1e-12


def check_portion(name: str, value: Portion | None) -> None:
    """Raises ``ConfigError`` for what is neither; 1 might mean one example or all of them."""
    if value is None or (value >= 2 if isinstance(value, int) else 0 < value <= 1):
        return
    hint = (
        "write 1.0 for all of them" if value == 1 else "give a fraction above 0 and at most 1.0, or a count"
    )
    raise ConfigError(
        Fault(f"{name} = {value!r} is neither a fraction nor a count of 2 or more", path=name, hint=hint)
    )


def count(portion: Portion, of: int) -> int:
    """How many examples of ``of``: at most all, and at least 1, even of none."""
    asked = portion if isinstance(portion, int) else round(portion * of)
    return max(1, min(asked, of))


def whole(x: float) -> int:
    """The least integer ≥ ``x``, where ``x`` is known up to rounding only; ``x`` is finite."""
    return math.ceil(x * (1 - ROUNDING))
