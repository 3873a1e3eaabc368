"""Laying one tree over another, and setting a value at a path."""

from __future__ import annotations

from collections.abc import Sequence

from curvlab.config.tree import Node
from curvlab.errors import Fault
from curvlab.registry.suggest import advice

#: leaves an optional place of a composition empty
NONE = "none"


def merge(base: Node, over: Node, faults: list[Fault], *, anew: bool = False) -> Node:
    """``over`` merged into ``base``: tables key by key, everything else replaced.

    A table whose ``use`` changes is replaced.  With ``anew``, as where ``over`` changes a method's own
    composition, any table that has ``use`` is: it describes a part from that part's own defaults.  A string
    over a table (or under one) is the table ``{use = string}``.  A table over an array addresses its entries,
    by index or by their ``use``.
    """
    if base.is_table and isinstance(over.value, str) and over.value != NONE:
        over = over.as_table()
    if over.is_table and isinstance(base.value, str) and base.value != NONE:
        base = Node(base.as_table().table, over.origin)  # the table comes from the file that wrote it
    if isinstance(base.value, list) and over.is_table and "use" not in over.table:
        return _over_entries(base, over, faults, anew=anew)
    if not (base.is_table and over.is_table):
        return over
    if over.use is not None and base.use is not None and (anew or over.use != base.use):
        return over
    children = dict(base.table)
    for key, child in over.table.items():
        over_it = key in children and key != "use"  # a name is replaced, whatever comes in its place
        children[key] = merge(children[key], child, faults, anew=anew) if over_it else child
    return Node(children, over.origin if "use" in over.table else base.origin)


def _over_entries(base: Node, over: Node, faults: list[Fault], *, anew: bool) -> Node:
    entries = list(base.value)
    for key, child in over.table.items():
        index = entry_index(base, key)
        if index is None:
            faults.append(child.fault(*no_entry(base, key)))
        else:
            entries[index] = merge(entries[index], child, faults, anew=anew)
    return Node(entries, base.origin)


def entry_index(array: Node, key: str) -> int | None:
    """Which entry ``key`` addresses: its number, or the first whose ``use`` is ``key``."""
    entries: list[Node] = array.value
    if key.isdecimal():
        return int(key) if int(key) < len(entries) else None
    return next((i for i, entry in enumerate(entries) if entry.use == key), None)


def no_entry(array: Node, key: str) -> tuple[str, str]:
    """Message and hint for a key that addresses no entry of an array."""
    names = [entry.use or "?" for entry in array.value]
    if key.isdecimal():
        return (
            f"there is no entry {key}: the array has {len(names)}",
            f"Entries: {', '.join(names) or 'none'}.",
        )
    return f'there is no entry with use = "{key}"', advice(key, names, "Entries")


def put(
    tree: Node, path: Sequence[str], value: Node, faults: list[Fault], *, anew: bool = False
) -> Node | None:
    """``tree`` with ``value`` merged into what stands at ``path``; ``None`` if a place on the way is empty.

    Missing tables on the way are created; arrays are entered by index or by their entries' ``use``.
    """
    if not path:
        return merge(tree, value, faults, anew=anew)
    key, rest = path[0], path[1:]
    if tree.value == NONE:
        return None
    if isinstance(tree.value, list):
        index = entry_index(tree, key)
        if index is None:
            faults.append(value.fault(*no_entry(tree, key)))
            return tree
        entry = put(tree.value[index], rest, value, faults, anew=anew)
        return (
            None
            if entry is None
            else Node([*tree.value[:index], entry, *tree.value[index + 1 :]], tree.origin)
        )
    table = tree.as_table()
    if not table.is_table:
        return tree  # neither a table nor a name: the builder reports it
    below = table.table.get(key)
    if below is None and not rest:
        return Node({**table.table, key: value}, table.origin)
    child = put(Node({}, value.origin) if below is None else below, rest, value, faults, anew=anew)
    return None if child is None else Node({**table.table, key: child}, table.origin)


def at(tree: Node, path: Sequence[str]) -> Node | None:
    """What stands at ``path``, or ``None``."""
    for key in path:
        if isinstance(tree.value, list):
            index = entry_index(tree, key)
            if index is None:
                return None
            tree = tree.value[index]
        elif key in tree.as_table().table:
            tree = tree.as_table().table[key]
        else:
            return None
    return tree
