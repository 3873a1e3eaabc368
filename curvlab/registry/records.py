"""What the registry holds: parts, methods and plugins, each with the distribution it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from curvlab.errors import PluginError, raised

#: seconds that a plugin may take to load before it is said to be slow; registering takes milliseconds
SLOW = 1.0

Status = Literal["ok", "broken", "blocked", "incompatible", "clash"]


@dataclass(frozen=True)
class PartEntry:
    """A registered part: a name for a class, and the settings that the name fixes.

    ``factory`` is an import string ``package.module:Class``, resolved at first use.  ``source``
    says, for a task, where its data come from.
    """

    kind: str
    name: str
    factory: str
    summary: str
    source: str = ""
    preset: Mapping[str, Any] = field(default_factory=dict)
    distribution: str = ""
    version: str = ""

    @property
    def origin(self) -> str:
        """Distribution and version, for messages and manifests."""
        return f"{self.distribution} {self.version}".strip() or "imported by path"


@dataclass(frozen=True)
class MethodEntry:
    """A method: a TOML file inside a distribution.  It is parsed when something of it is asked for."""

    name: str
    path: str
    text: str = field(repr=False)
    distribution: str = ""
    version: str = ""

    @property
    def origin(self) -> str:
        """Distribution and version, for messages and manifests."""
        return f"{self.distribution} {self.version}".strip()

    @cached_property
    def document(self) -> Mapping[str, Any]:
        """The parsed file; raises ``PluginError`` naming file and line."""
        import tomli

        try:
            return tomli.loads(self.text)
        except tomli.TOMLDecodeError as err:
            raise PluginError(
                f'{self.path}:{err.lineno}:{err.colno}: method "{self.name}" is not TOML: {err.msg}'
            ) from err
        except (ValueError, RecursionError) as err:  # an integer of too many digits, tables nested too deep
            raise PluginError(f'{self.path}: method "{self.name}" cannot be read: {raised(err)}') from err

    @property
    def summary(self) -> str:
        """One line: what the method is."""
        return self._about("summary")

    @property
    def reference(self) -> str:
        """The paper or text that defines it."""
        return self._about("reference")

    @property
    def needs(self) -> str:
        """In words: what it asks to be evaluated."""
        return self._about("needs")

    def _about(self, key: str) -> str:
        about = self.document.get("about", {})
        value = about.get(key, "") if isinstance(about, dict) else ""
        if not isinstance(value, str):
            raise PluginError(
                f'{self.path}: about.{key}: method "{self.name}": expected a string, got {value!r}'
            )
        return value


@dataclass(frozen=True)
class PluginRecord:
    """A plugin that was found, whether or not it could be used.

    ``error`` is empty for ``ok``; a broken plugin's holds the traceback, and ``cause`` what was raised and
    where, on one line.  ``parts`` are written ``kind/name``; those of a broken plugin are what it had added
    before it raised.  ``seconds`` is how long it took to load, ``heavy`` which of the slow libraries it
    was the first to import.
    """

    name: str
    distribution: str
    version: str
    status: Status
    error: str = ""
    hooks: tuple[str, ...] = ()
    api_version: str = ""
    parts: tuple[str, ...] = ()
    seconds: float = field(default=0.0, compare=False)
    heavy: tuple[str, ...] = ()
    cause: str = field(default="", compare=False)

    @property
    def slow(self) -> str:
        """What a user who waits for this plugin should know, or nothing if it loads fast enough."""
        if self.seconds < SLOW:
            return ""
        why = f" because it imports {', '.join(self.heavy)}" if self.heavy else ""
        return (
            f"slow: it takes {self.seconds:.1f} s to load{why}, and every command waits for it; "
            f"`-p no:{self.name}` skips it"
        )

    @property
    def reason(self) -> str:
        """One line: what is wrong with the plugin, and where."""
        return self.cause or " ".join(self.error.split())

    @property
    def usable(self) -> bool:
        """Whether its parts can be used; a clash is settled where the name is asked for."""
        return self.status in ("ok", "clash")
