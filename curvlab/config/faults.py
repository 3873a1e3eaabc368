"""The faults of a configuration, the user's and those of plugins, reported at once."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from curvlab.config.tree import Node
from curvlab.errors import ConfigError, Fault, PluginError


@dataclass
class Faults:
    """Faults in the order in which they were found: the user's, and those that a plugin is to blame for."""

    user: list[Fault] = field(default_factory=list)
    plugin: list[Fault] = field(default_factory=list)

    def blame(self, node: Node, message: str, hint: str = "", place: str = "") -> None:
        """Record a fault of ``node``: the plugin's, if its method file wrote it."""
        self.add([node.fault(message, hint, place)], node.origin.distribution)

    def add(self, faults: Iterable[Fault], distribution: str | None) -> None:
        """Record faults of what this distribution wrote; ``None`` or empty: the user wrote it."""
        (self.plugin if distribution else self.user).extend(faults)

    def raise_all(self) -> None:
        """``PluginError`` if a plugin is to blame for any fault, ``ConfigError`` if the user is."""
        found = list(dict.fromkeys([*self.plugin, *self.user]))
        found.sort(key=lambda f: (f.file or "", f.line or 0, f.column or 0))
        if self.plugin:
            raise PluginError("\n".join(str(fault) for fault in found))
        if found:
            raise ConfigError(*found)
