"""Changes of benchmarks that were intended, with reasons: ``intended.toml`` beside asv's configuration.

A table ``[[change]]`` names a commit, a regular expression of benchmarks, and why the number grew.  A number
that is worse at that commit is then *intended*: no regression, and later growth is measured from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import tomli

from curvlab.errors import ResultsError

NAME = "intended.toml"

_HASH = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class Intended:
    """One of them; ``benchmarks`` is searched for in a benchmark's name with its case."""

    commit: str
    benchmarks: str
    why: str

    def __post_init__(self) -> None:
        if not _HASH.fullmatch(self.commit):
            raise ValueError(f'commit = "{self.commit}": expected 7 to 40 hexadecimal digits of a hash')
        try:
            re.compile(self.benchmarks)
        except re.error as err:
            raise ValueError(f"benchmarks = '{self.benchmarks}' is no regular expression: {err}") from err
        for name in ("benchmarks", "why"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name} is empty")

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(self.benchmarks)

    def covers(self, key: object) -> bool:
        """Whether it speaks of a benchmark."""
        return self._pattern.search(str(key)) is not None


def parsed(entries: object) -> tuple[Intended, ...]:
    """Tables as records; raises ``ValueError`` with the number of the table that is wrong."""
    if not isinstance(entries, list):
        raise ValueError("expected an array of tables [[change]]")
    return tuple(_parsed(entry, k + 1) for k, entry in enumerate(entries))


def _parsed(entry: object, number: int) -> Intended:
    names = [f.name for f in fields(Intended)]
    if not isinstance(entry, Mapping) or sorted(entry) != sorted(names):
        found = ", ".join(entry) if isinstance(entry, Mapping) else repr(entry)
        raise ValueError(f"change {number}: expected the keys {', '.join(names)}, found {found or 'none'}")
    if not all(isinstance(value, str) for value in entry.values()):
        raise ValueError(f"change {number}: every value is a string")
    try:
        return Intended(**entry)
    except ValueError as err:
        raise ValueError(f"change {number}: {err}") from err


def read_intended(path: Path) -> tuple[Intended, ...]:
    """All of a file, none where there is no file; raises ``ResultsError`` naming the file and the table."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError) as err:
        raise ResultsError(f"{path} cannot be read: {err}") from err
    try:
        document = tomli.loads(text)
        unknown = sorted(set(document) - {"change"})
        if unknown:
            raise ValueError(f"unknown key {unknown[0]}: expected tables [[change]]")
        return parsed(document.get("change", []))
    except tomli.TOMLDecodeError as err:
        raise ResultsError(f"{path}:{err.lineno}:{err.colno} is not TOML: {err.msg}") from err
    except ValueError as err:
        raise ResultsError(f"{path}: {err}") from err


def values(found: Sequence[Intended]) -> list[dict[str, Any]]:
    """What ``parsed`` reads."""
    return [{f.name: getattr(one, f.name) for f in fields(Intended)} for one in found]
