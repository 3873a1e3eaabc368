"""Range checks of settings, in the words of the error a user reads."""

from __future__ import annotations

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.schedule import Schedule


def positive(name: str, value: float | Schedule) -> None:
    """``value`` > 0; a schedule is checked by itself."""
    if not isinstance(value, Schedule) and not value > 0:
        raise ConfigError(Fault(f"{name} = {value!r} must be positive", path=name))


def not_negative(name: str, value: float | Schedule) -> None:
    """``value`` ≥ 0."""
    if not isinstance(value, Schedule) and not value >= 0:
        raise ConfigError(Fault(f"{name} = {value!r} must not be negative", path=name))


def fraction(name: str, value: float, *, closed: bool = False) -> None:
    """0 ≤ ``value`` < 1, or ≤ 1 if ``closed``."""
    if not (0 <= value <= 1 if closed else 0 <= value < 1):
        upper = "≤ 1" if closed else "< 1"
        raise ConfigError(Fault(f"{name} = {value!r} must be ≥ 0 and {upper}", path=name))


def at_least(name: str, value: int, least: int) -> None:
    """An integer ≥ ``least``."""
    if value < least:
        raise ConfigError(Fault(f"{name} = {value!r} must be at least {least}", path=name))
