"""From a built part back to the table that makes it: how defaults, and parts given built, are spelled out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from curvlab.config.schema import kind_of, settings_of
from curvlab.config.tree import DEFAULT, Node, Origin, node_of
from curvlab.config.values import as_plain
from curvlab.registry.kinds import METHOD
from curvlab.registry.records import PartEntry
from curvlab.registry.registry import Registry


def described(value: Any, registry: Registry, origin: Origin = DEFAULT) -> Node:
    """A value as a tree: a part as its table, with ``use`` and every setting that is not ``None``."""
    if isinstance(value, Mapping):
        return Node({str(k): described(v, registry, origin) for k, v in value.items()}, origin)
    if isinstance(value, (tuple, list)):
        return Node([described(v, registry, origin) for v in value], origin)
    if not _is_record(value):
        return node_of(as_plain(value), lambda path: origin)
    entry = _entry_of(value, registry)
    table = {} if entry is None else {"use": Node(registry.use(entry), origin)}
    for name in _settings(value):
        content = getattr(value, name)
        if content is not None and (entry is None or name not in entry.preset):
            table[name] = described(content, registry, origin)
    return Node(table, origin)


def entries_in(value: Any, registry: Registry) -> Iterator[PartEntry]:
    """The entries of every part that a value is or holds."""
    inner: Iterable[Any] = ()
    if _is_record(value):
        entry = _entry_of(value, registry)
        if entry is not None:
            yield entry
        inner = (getattr(value, name) for name in _settings(value))
    elif isinstance(value, Mapping):
        inner = value.values()
    elif isinstance(value, (tuple, list)):
        inner = value
    for content in inner:
        yield from entries_in(content, registry)


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _settings(value: Any) -> Iterable[str]:
    cls: type = type(value)
    return settings_of(cls)


def _entry_of(part: Any, registry: Registry) -> PartEntry | None:
    """The entry that makes such a part: a registered one if there is one, else its import path."""
    cls: type = type(part)
    kind = kind_of(cls)
    if kind is None or kind == METHOD:
        return None
    path = f"{cls.__module__}:{cls.__qualname__}"
    for entry in registry.parts(kind):
        if entry.factory == path and all(getattr(part, name) == v for name, v in entry.preset.items()):
            return entry
    return PartEntry(kind, path, path, summary="")
