"""A TOML text whose values know their lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from curvlab.config.locator import Path, Position, locate
from curvlab.config.tree import Node, Origin, dotted, node_of


@dataclass(frozen=True)
class Source:
    """A file's text; ``layer`` and ``distribution`` go into the origins (see ``Origin``)."""

    file: str
    text: str
    layer: str
    distribution: str = ""

    def tree(self, data: Mapping[str, Any], rank: int = -1) -> Node:
        """What tomli made of the text, with origins."""
        return node_of(data, lambda path: self._origin(path, rank))

    @cached_property
    def _lines(self) -> list[str]:
        return self.text.split("\n")

    @cached_property
    def _positions(self) -> Mapping[Path, Position]:
        return locate(self.text)

    def _origin(self, path: Path, rank: int) -> Origin:
        if not path:
            return Origin(self.layer, "", self.file, rank=rank, distribution=self.distribution)
        at = self._positions[path]
        line = self._lines[at.line - 1].rstrip("\r")
        return Origin(self.layer, dotted(path), self.file, at.line, at.column, line, rank, self.distribution)
