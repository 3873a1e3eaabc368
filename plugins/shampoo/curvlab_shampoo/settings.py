"""Range checks of the parts' settings."""

from __future__ import annotations

from curvlab.errors import ConfigError, Fault


def require(part: str, **settings: tuple[object, bool, str]) -> None:
    """Raise one ``ConfigError`` that names every setting (its value, whether it holds, what is expected)."""
    wrong = [
        Fault(f"{part}: {name} = {value!r} must be {expected}", path=name)
        for name, (value, holds, expected) in settings.items()
        if not holds
    ]
    if wrong:
        raise ConfigError(*wrong)
