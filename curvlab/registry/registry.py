"""The registry: names of parts and methods, looked up with clash and near-miss errors."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import pluggy

from curvlab.errors import ConfigError, CurvlabError, Fault, PluginError
from curvlab.registry.identity import PROJECT
from curvlab.registry.imports import is_import_string, require_imports
from curvlab.registry.kinds import KINDS, METHOD, PROTOCOLS
from curvlab.registry.records import MethodEntry, PartEntry, PluginRecord
from curvlab.registry.suggest import advice, nearest

Entry = TypeVar("Entry", PartEntry, MethodEntry)

#: "none" leaves an optional place of a configuration empty, and ":" separates distribution and name
_NAME = re.compile(r"(?!none$)[a-z0-9][a-z0-9._-]*")


class Registry:
    """Parts and methods by name.

    ``distribution`` and ``version`` are written on every entry that is added; the loader hands each
    plugin a registry of its own and absorbs it if the plugin did not fail.
    """

    def __init__(self, distribution: str = "", version: str = "") -> None:
        self.distribution = distribution
        self.version = version
        self.manager = pluggy.PluginManager(PROJECT)
        self.plugins: list[PluginRecord] = []
        self._entries: dict[tuple[str, str], list[PartEntry | MethodEntry]] = {}
        self._in_order: list[PartEntry | MethodEntry] | None = None

    # -- what a plugin calls -----------------------------------------------------------------

    def add(
        self, kind: str, name: str, factory: str, /, *, summary: str, source: str = "", **preset: Any
    ) -> None:
        """Register a part.

        ``factory`` is an import string ``package.module:Class``; ``summary`` one line for listings;
        ``source`` where a task's data come from; ``preset`` settings that this name fixes, as values of
        TOML.  Raises ``PluginError`` for anything else.
        """
        if kind not in PROTOCOLS:
            raise PluginError(f'unknown kind "{kind}" of part "{name}". {advice(kind, PROTOCOLS, "Kinds")}')
        if not is_import_string(factory):
            raise PluginError(
                f'{kind} "{name}": factory {factory!r} is not an import string package.module:Class'
            )
        if not isinstance(summary, str) or not summary.strip() or not is_line(summary):
            raise PluginError(f'{kind} "{name}": summary must be one line, got {summary!r:.80}')
        if not isinstance(source, str) or not is_line(source):
            raise PluginError(f'{kind} "{name}": source must be one line, got {source!r:.80}')
        for key, value in preset.items():
            if not is_plain(value):
                raise PluginError(
                    f'{kind} "{name}": preset {key} = {value!r:.80} is no value of TOML: '
                    "expected a string, a finite number, a boolean, or lists and tables of these"
                )
        entry = PartEntry(kind, name, factory, summary, source, preset, self.distribution, self.version)
        self._insert(kind, entry)

    def methods(self, package: str, /) -> None:
        """Register every ``methods/*.toml`` inside ``package``; a file's stem is the method's name."""
        from importlib.resources import files

        folder = files(package) / "methods"
        if not folder.is_dir():
            raise PluginError(f"{package} has no folder methods/ with TOML files")
        for file in sorted(folder.iterdir(), key=lambda f: f.name):
            if file.name.endswith(".toml"):
                path = f"{package}/methods/{file.name}"
                text = file.read_text(encoding="utf-8")
                name = file.name.removesuffix(".toml")
                self._insert(METHOD, MethodEntry(name, path, text, self.distribution, self.version))

    # -- what the rest of curvlab calls ------------------------------------------------------

    def part(self, kind: str, use: str, prefer: str = "") -> PartEntry:
        """The part that ``use`` names: ``name``, ``distribution:name`` or ``package.module:Class``.

        Among clashing parts that of distribution ``prefer`` is taken, else core's: a method file means
        the parts of its own distribution, or core's, whatever else is installed.  Raises
        ``ConfigError`` for an unknown or ambiguous name and for a class by its path under
        ``CURVLAB_IMPORTS=0``, ``PluginError`` for a name that a broken plugin should have brought.
        """
        if is_import_string(use) and not self._is_distribution(use.partition(":")[0]):
            require_imports(use)
            return PartEntry(kind, use, use, summary="")
        return self._lookup(kind, use, list(self.parts(kind)), prefer)

    def method(self, use: str, prefer: str = "") -> MethodEntry:
        """The method that ``use`` names: ``name`` or ``distribution:name``; raises like ``part``."""
        return self._lookup(METHOD, use, list(self.method_entries()), prefer)

    def parts(self, kind: str | None = None) -> Iterator[PartEntry]:
        """Every part, or those of one kind; by kind, then name, then distribution."""
        for entry in self._sorted():
            if isinstance(entry, PartEntry) and kind in (None, entry.kind):
                yield entry

    def method_entries(self) -> Iterator[MethodEntry]:
        """Every method, by name, then distribution."""
        for entry in self._sorted():
            if isinstance(entry, MethodEntry):
                yield entry

    def use(self, entry: PartEntry | MethodEntry) -> str:
        """What a configuration writes for an entry: its name, and whose it is if several have that name."""
        kind = entry.kind if isinstance(entry, PartEntry) else METHOD
        return f"{entry.distribution}:{entry.name}" if (kind, entry.name) in self.clashes() else entry.name

    def clashes(self) -> Mapping[tuple[str, str], tuple[str, ...]]:
        """(kind, name) -> the distributions that all use this name, where there are several."""
        return {
            key: tuple(e.distribution for e in entries)
            for key, entries in self._entries.items()
            if len(entries) > 1
        }

    def absorb(self, other: Registry) -> None:
        """Take over every entry of ``other``, or raise ``PluginError`` and take none."""
        added = [(kind, entry) for (kind, _), entries in other._entries.items() for entry in entries]
        for kind, entry in added:
            self._check(kind, entry)
        for kind, entry in added:
            self._insert(kind, entry)

    def keys(self) -> tuple[str, ...]:
        """``kind/name`` of every entry, in the order they were added."""
        return tuple(f"{kind}/{name}" for kind, name in self._entries)

    # -- how ---------------------------------------------------------------------------------

    def _insert(self, kind: str, entry: PartEntry | MethodEntry) -> None:
        self._check(kind, entry)
        self._entries.setdefault((kind, entry.name), []).append(entry)
        self._in_order = None

    def _check(self, kind: str, entry: PartEntry | MethodEntry) -> None:
        if not _NAME.fullmatch(entry.name):
            raise PluginError(
                f'{kind} name "{entry.name}": expected lower-case letters, digits, ".", "_" and "-"'
            )
        entries = self._entries.get((kind, entry.name), [])
        if any(_same(e.distribution, entry.distribution) for e in entries):
            raise PluginError(
                f'{kind} "{entry.name}" is registered twice by {entry.distribution or "one plugin"}'
            )

    def _sorted(self) -> list[PartEntry | MethodEntry]:
        """Sorted once after the last insertion: every name of a configuration is looked up here."""
        if self._in_order is None:
            self._in_order = self._ordered()
        return self._in_order

    def _ordered(self) -> list[PartEntry | MethodEntry]:
        order = {kind: i for i, kind in enumerate(KINDS)}
        keys = sorted(self._entries, key=lambda key: (order[key[0]], key[1]))
        return [e for key in keys for e in sorted(self._entries[key], key=lambda e: e.distribution)]

    def _is_distribution(self, name: str) -> bool:
        known = {e.distribution for entries in self._entries.values() for e in entries}
        return any(_same(name, d) for d in known | {r.distribution for r in self.plugins})

    def _lookup(self, kind: str, use: str, entries: list[Entry], prefer: str) -> Entry:
        owner, _, name = use.rpartition(":")
        found = [e for e in entries if e.name == name and (not owner or _same(e.distribution, owner))]
        if not found:
            raise self._unknown(kind, use, entries)
        if len(found) > 1:
            for owner in (prefer, PROJECT) if prefer else ():
                mine = [e for e in found if _same(e.distribution, owner)]
                if mine:
                    return mine[0]
            raise _ambiguous(kind, name, found)
        return found[0]

    def _unknown(self, kind: str, use: str, entries: Iterable[PartEntry | MethodEntry]) -> CurvlabError:
        owner, _, name = use.rpartition(":")
        unusable = [r for r in self.plugins if not r.usable]
        for record in unusable:
            if record.status != "blocked" and _would_bring(record, kind, owner, name):
                return PluginError(
                    f'{kind} "{use}" comes from plugin "{record.name}" '
                    f"({record.distribution} {record.version}), which is {record.status}: {record.reason}\n"
                    "  `curvlab plugins list --json` shows the full error."
                )
        by_name = {e.name: e for e in entries}
        near = nearest(name, by_name)
        guess = f'Did you mean "{near}" ({by_name[near].origin})?  ' if near else ""
        notes = [f"{guess}Known: {', '.join(sorted(by_name)) or 'none'}."]
        elsewhere = sorted(k for k, n in self._entries if n == name and k != kind)
        if elsewhere:
            notes.append(f'"{name}" is the name of a {" and a ".join(elsewhere)}, not of a {kind}.')
        notes += [f'Plugin "{r.name}" is {r.status} and may contain it: {r.reason}' for r in unusable]
        return ConfigError(Fault(f'unknown {kind} "{use}"', hint="\n  ".join(notes)))


def is_line(text: str) -> bool:
    """Whether ``text`` fits a line of a table: no control characters, no lone surrogates."""
    return not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in text)


def is_plain(value: Any) -> bool:
    """Whether TOML and JSON can write ``value``."""
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any(unicodedata.category(c) == "Cs" for c in value)
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(key) and is_plain(v) for key, v in value.items())
    return isinstance(value, (bool, int))


def _ambiguous(kind: str, name: str, found: Iterable[PartEntry | MethodEntry]) -> ConfigError:
    entries = list(found)
    choices = " or ".join(f'use = "{e.distribution}:{name}"' for e in entries)
    owners = " and ".join(e.origin for e in entries)
    return ConfigError(Fault(f'{kind} "{name}" is registered by {owners}', hint=f"Write {choices}."))


def _would_bring(record: PluginRecord, kind: str, owner: str, name: str) -> bool:
    if owner:
        return _same(record.distribution, owner)
    return f"{kind}/{name}" in record.parts or name in (record.name, record.distribution)


def _same(a: str, b: str) -> bool:
    """Whether two distribution names are one name to pip: case, and runs of ``-_.``, do not count."""
    return re.sub(r"[-_.]+", "-", a).lower() == re.sub(r"[-_.]+", "-", b).lower()
