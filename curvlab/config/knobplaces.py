"""Where the knobs of a method file stand in the method that was built of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from curvlab.config.knobs import MethodFile
from curvlab.config.merge import entry_index
from curvlab.config.tree import Node
from curvlab.engine.method import Method, Place


def places_of(file: MethodFile, method: Method, table: Node) -> Mapping[str, tuple[Place, ...]]:
    """The places of every knob, those that the knobs of a fallback stand for included.

    ``table`` is the composition that ``method`` was built of: entries of arrays go by the names in it.
    A path that leads nowhere any more, because another part was put on its way, has no place; a knob
    without a place is left out.
    """
    found: dict[str, tuple[Place, ...]] = {}
    for knob in file.knobs.values():
        places = [place for path in knob.paths for place in _follow(method, table, path)]
        if places:
            found[knob.name] = tuple(dict.fromkeys(places))
    return found


def _follow(part: Any, node: Node | None, path: tuple[str, ...]) -> list[Place]:
    """The places below ``part`` that a path means; none, if it leads nowhere."""
    if not path:
        return [()]
    key, rest = path[0], path[1:]
    step: str | int = key
    if isinstance(part, Method) and not rest and key in part.knobs:
        return list(part.knobs[key])
    if isinstance(part, tuple):
        index = _index(node, key, len(part))
        if index is None:
            return []
        step, inner = index, part[index]
        below = node.value[index] if node is not None and isinstance(node.value, list) else None
    else:
        if isinstance(part, Mapping) and key in part:
            inner = part[key]
        elif is_dataclass(part) and any(f.name == key and f.init for f in fields(part)):
            inner = getattr(part, key)
        else:
            return []
        below = node.as_table().table.get(key) if node is not None else None
    return [(step, *place) for place in _follow(inner, below, rest)]


def _index(node: Node | None, key: str, length: int) -> int | None:
    """The entry that a path's key names, if the array has it."""
    if node is not None and isinstance(node.value, list):
        return entry_index(node, key)
    return int(key) if key.isdecimal() and int(key) < length else None
