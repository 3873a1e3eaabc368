"""Range checks of tasks' settings, in the words of the error a user reads."""

from __future__ import annotations

from collections.abc import Sequence

from curvlab.errors import ConfigError, Fault


def at_least(least: float, **values: float) -> None:
    """Every value ≥ ``least`` (and finite); one ``ConfigError`` lists those that are not."""
    _refuse({n: v for n, v in values.items() if not least <= v < float("inf")}, f"must be at least {least}")


def widths(**values: Sequence[int]) -> None:
    """Every entry of every value ≥ 1; one ``ConfigError`` lists those with a smaller one."""
    wrong = {n: v for n, v in values.items() if any(width < 1 for width in v)}
    _refuse({n: list(v) for n, v in wrong.items()}, "must hold widths of at least 1")


def _refuse(wrong: dict[str, object], expected: str) -> None:
    if wrong:
        raise ConfigError(*(Fault(f"{n} = {v!r} {expected}", path=n) for n, v in wrong.items()))
