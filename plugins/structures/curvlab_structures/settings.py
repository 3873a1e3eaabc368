"""Range checks of the families' settings, in the words of the error a user reads."""

from __future__ import annotations

from curvlab.errors import ConfigError, Fault


def at_least(name: str, value: int, least: int) -> None:
    """An integer ≥ ``least``; raises ``ConfigError`` naming the setting."""
    if value < least:
        raise ConfigError(Fault(f"{name} = {value!r} must be at least {least}", path=name))
