"""Which weights or layers a part works on: those whose names match its patterns."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from curvlab.errors import ConfigError, Fault


def matching(names: Sequence[str], patterns: Sequence[str], path: str, what: str) -> list[str]:
    """The names that match a pattern, in their order.

    Raises ``ConfigError`` at ``path`` for a pattern that matches none; ``what`` the names are, in words.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ConfigError(
                Fault(
                    f'no {what} matches "{pattern}"', path=path, hint=f"names: {', '.join(names) or 'none'}"
                )
            )
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
