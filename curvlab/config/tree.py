"""A configuration as a tree of nodes: plain values that remember where they were written."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time
from typing import Any

from curvlab.config.locator import Path
from curvlab.errors import LONGEST_KEY, Fault, shortened
from curvlab.protocols.bounds import LARGEST_INT, SMALLEST_INT


@dataclass(frozen=True)
class Origin:
    """Where a value was written.

    ``layer`` is what a user would call it (a file, ``--set``, ``method kfac``, ``default``); ``path``
    the dotted key as written there, which a knob makes differ from the place where the value ends
    up; ``rank`` the layer's number among the user's (later ones override), −1 for method files and
    defaults; ``distribution`` is set for values that a plugin's method file wrote.
    """

    layer: str
    path: str = ""
    file: str | None = None
    line: int | None = None
    column: int | None = None
    source: str = ""
    rank: int = -1
    distribution: str = ""

    @property
    def given(self) -> bool:
        """Whether the user wrote it, rather than a method file or a default."""
        return self.rank >= 0

    def __str__(self) -> str:
        if self.line is None:
            return self.layer
        where = f"{self.file}:{self.line}"
        return f"{self.layer} ({where})" if self.distribution else where


DEFAULT = Origin("default")


@dataclass(frozen=True)
class Node:
    """A value and its origin: a ``dict`` or ``list`` of nodes, or a plain value."""

    value: Any
    origin: Origin

    @property
    def is_table(self) -> bool:
        """Whether it is a table."""
        return isinstance(self.value, dict)

    @property
    def table(self) -> dict[str, Node]:
        """The children of a table; of anything else, none."""
        return self.value if isinstance(self.value, dict) else {}

    @property
    def use(self) -> str | None:
        """The name that this value picks: its key ``use``, or the value itself if it is a string."""
        chosen = self.value if not self.is_table else self.table["use"].value if "use" in self.table else None
        return chosen if isinstance(chosen, str) else None

    def as_table(self) -> Node:
        """A bare string as the table it stands for; anything else unchanged."""
        return Node({"use": self}, self.origin) if isinstance(self.value, str) else self

    def without(self, *keys: str) -> Node:
        """The table less some keys."""
        return Node({k: v for k, v in self.table.items() if k not in keys}, self.origin)

    def fault(self, message: str, hint: str = "", path: str = "") -> Fault:
        """A fault at the place where this value was written."""
        o = self.origin
        return Fault(message, o.path or path, o.file, o.line, o.column, hint, o.source)

    def walk(self) -> Iterator[Node]:
        """This node and all below it."""
        yield self
        children = (
            self.value.values() if self.is_table else self.value if isinstance(self.value, list) else ()
        )
        for child in children:
            yield from child.walk()


def node_of(data: Any, origin_at: Callable[[Path], Origin], path: Path = ()) -> Node:
    """A tree of plain data; ``None`` values count as absent."""
    value = data
    if isinstance(data, Mapping):
        value = {str(k): node_of(v, origin_at, (*path, str(k))) for k, v in data.items() if v is not None}
    elif isinstance(data, (list, tuple)):
        value = [node_of(v, origin_at, (*path, i)) for i, v in enumerate(data)]
    return Node(value, origin_at(path))


def plain(node: Node) -> Any:
    """The tree without origins."""
    if node.is_table:
        return {key: plain(child) for key, child in node.table.items()}
    return [plain(child) for child in node.value] if isinstance(node.value, list) else node.value


def describe(value: Any) -> str:
    """What came, in the words of an error message; of a long string, its beginning."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'the string "{shortened(value, LONGEST_KEY)}"'
    if isinstance(value, (list, tuple)):
        return f"an array of {len(value)}"
    if isinstance(value, int) and not SMALLEST_INT <= value <= LARGEST_INT:
        return "a whole number too large for 64 bits"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (datetime, date, time)):
        return str(value)
    return "a table" if isinstance(value, dict) else f"an object of type {type(value).__name__}"


def dotted(path: Path) -> str:
    """A path as text."""
    return ".".join(str(part) for part in path)
