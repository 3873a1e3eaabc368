"""Names that a configuration may write in a place: parts and methods, and which of them fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from curvlab.config.schema import Setting, kind_of, members, words
from curvlab.config.tree import Node
from curvlab.errors import CurvlabError
from curvlab.registry.imports import part_class
from curvlab.registry.kinds import METHOD
from curvlab.registry.records import MethodEntry, PartEntry
from curvlab.registry.registry import Registry


@dataclass(frozen=True)
class Named:
    """Looks names up in a registry."""

    registry: Registry

    def entries(self, kind: str) -> Sequence[PartEntry | MethodEntry]:
        """What is registered of a kind, methods included."""
        return list(self.registry.method_entries() if kind == METHOD else self.registry.parts(kind))

    def known(self, kind: str) -> str:
        """The names of a kind, for messages: sorted, separated by commas."""
        return ", ".join(sorted({entry.name for entry in self.entries(kind)}))

    def is_part(self, node: Node, options: Sequence[Any]) -> bool:
        """Whether a node names a part, or an import path, that one of these types may be."""
        use = node.use
        if use is None:
            return False
        return ":" in use or any(use == e.name for o in options for e in self.entries(str(kind_of(o))))

    def is_method(self, use: str) -> bool:
        """Whether this is the name of a method, with its distribution or without."""
        return any(use in (entry.name, self.registry.use(entry)) for entry in self.registry.method_entries())

    def pick(self, node: Node, options: Sequence[Any]) -> Any:
        """The first of several types whose kind has the name; the first of all if none has."""
        return next((o for o in options if self.is_part(node, [o])), options[0])

    def able(self, kind: str, wanted: type) -> list[str]:
        """Names of the parts of a kind that are instances of ``wanted``."""
        found = []
        for entry in self.registry.parts(kind):
            try:
                found += [entry.name] if issubclass(part_class(entry), wanted) else []
            except CurvlabError:
                continue  # a part that cannot be imported is no help here; it is reported where it is used
        return found

    def how(self, setting: Setting) -> str:
        """How a missing setting is written, for messages."""
        kind = kind_of(members(setting.annotation)[0])
        known = self.known(kind) if kind else ""
        return f"Write {setting.name} = …, {words(setting.annotation)}" + (f": {known}." if known else ".")
