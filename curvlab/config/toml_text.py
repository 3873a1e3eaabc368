"""A tree as TOML text in which a comment after each value says where it came from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import tomli_w

from curvlab.config.tree import Node, plain

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def annotated(tree: Node) -> str:
    """The tree as TOML, each value followed by its origin."""
    return "\n".join(_table(tree, ())).strip("\n") + "\n"


def _table(node: Node, path: tuple[str, ...]) -> Iterator[str]:
    """Values first: what follows a sub-table's header would belong to it."""
    below = []
    for key, child in node.table.items():
        if child.is_table or _is_array_of_tables(child):
            below.append((key, child))
        else:
            yield f"{_key(key)} = {inline(plain(child))}  # {child.origin}"
    for key, child in below:
        inner = (*path, key)
        name = ".".join(_key(part) for part in inner)
        if child.is_table:
            yield f"\n[{name}]"
            yield from _table(child, inner)
        else:
            for entry in child.value:
                yield f"\n[[{name}]]"
                yield from _table(entry, inner)


def _is_array_of_tables(node: Node) -> bool:
    return isinstance(node.value, list) and bool(node.value) and all(entry.is_table for entry in node.value)


def _key(key: str) -> str:
    return key if _BARE.fullmatch(key) else inline(key)


def inline(value: Any) -> str:
    """A value as TOML on one line."""
    if isinstance(value, dict):
        return (
            "{ " + ", ".join(f"{_key(k)} = {inline(v)}" for k, v in value.items()) + " }" if value else "{}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(inline(v) for v in value) + "]"
    return tomli_w.dumps({"v": value}).removeprefix("v = ").rstrip("\n")
