"""TOML text as plain data, with the place of what is no TOML or is nested too deeply."""

from __future__ import annotations

from typing import Any

import tomli

from curvlab.config.limits import DEEPEST, too_deep
from curvlab.config.locator import beyond_depth

_NESTED = f"nested more than {DEEPEST} levels deep"
_FLATTER = "write a flatter table"


class NotToml(Exception):
    """Text that cannot be read: what is wrong, what to do, and the line and column, from 1, if known.

    ``beyond``: it is TOML, but beyond the limits of a configuration.
    """

    def __init__(
        self, message: str, hint: str, line: int, column: int | None = None, *, beyond: bool = True
    ) -> None:
        super().__init__(message)
        self.message, self.hint, self.line, self.column, self.beyond = message, hint, line, column, beyond


def read_toml(text: str) -> dict[str, Any]:
    """The data of a TOML text; raises ``NotToml``."""
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as err:
        hint = "put strings in quotes, write each key once per table, write true and false in lower case"
        raise NotToml(f"not TOML: {err.msg}", hint, err.lineno, err.colno, beyond=False) from err
    except RecursionError as err:  # tomli's own limit, a few hundred levels
        raise NotToml(_NESTED, _FLATTER, _line_of(text, RecursionError)) from err
    except ValueError as err:  # Python's limit on the digits of an int
        hint = "write a number of at most 64 bits"
        raise NotToml("the number has too many digits", hint, _line_of(text, ValueError)) from err
    if too_deep(data) is not None:
        at = beyond_depth(text, DEEPEST)
        raise NotToml(_NESTED, _FLATTER, at.line, at.column)
    return data


def _line_of(text: str, error: type[Exception]) -> int:
    """The line at which reading fails with ``error``: the last one of the shortest beginning that does."""
    lines = text.split("\n")
    fine, fails = 0, len(lines)
    while fails - fine > 1:
        middle = (fine + fails) // 2
        if _fails(chr(10).join(lines[:middle]), error):
            fails = middle
        else:
            fine = middle
    return fails


def _fails(text: str, error: type[Exception]) -> bool:
    try:
        tomli.loads(text)
    except tomli.TOMLDecodeError:  # an open array or string: cut off before the error
        return False
    except error:
        return True
    return False
