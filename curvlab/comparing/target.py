"""A value that a metric is to reach: ``val_loss<=0.1``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from curvlab.errors import UsageError

_FORM = re.compile(r"\s*([^<>=\s]+)\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Target:
    """``metric`` at or below ``value``, or at or above it if ``more_is_better``."""

    metric: str
    value: float
    more_is_better: bool = False

    @classmethod
    def of(cls, text: str) -> Target:
        """From ``metric<=value`` or ``metric>=value`` on a command line; raises ``UsageError``."""
        found = cls.read(text)
        if found is None:
            raise UsageError(
                f"--target {text}: expected metric<=value or metric>=value in quotes, as 'val_loss<=0.1'"
            )
        return found

    @classmethod
    def read(cls, text: str) -> Target | None:
        """From ``metric<=value`` or ``metric>=value``; ``None`` for any other text."""
        found = _FORM.fullmatch(text)
        value = _number(found[3]) if found else None
        return None if found is None or value is None else cls(found[1], value, found[2] == ">=")

    def met_by(self, value: float) -> bool:
        """Whether a value meets it; NaN does not."""
        return value >= self.value if self.more_is_better else value <= self.value

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if self.more_is_better else '<='}{self.value:.6g}"


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
