"""Makes a part from settings that are made already; what the part refuses is a fault of one of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from curvlab.config.describe import described, entries_in
from curvlab.config.faults import Faults
from curvlab.config.schema import settings_of
from curvlab.config.tree import Node
from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import bound_faults
from curvlab.registry.registry import Registry


@dataclass(frozen=True)
class Built:
    """What was made, and the tree that makes it again."""

    value: Any
    node: Node


@dataclass
class Construction:
    """Makes dataclasses; collects their faults, and the origin of every part in use (``provenance``)."""

    registry: Registry
    faults: Faults
    provenance: dict[str, str] = field(default_factory=dict)

    def make(
        self, cls: type, made: Mapping[str, Built], fixed: Mapping[str, Any], table: Node, place: str
    ) -> Built | None:
        """The dataclass; what its own checks refuse becomes a fault at the setting to blame."""
        values = {name: b.value for name, b in made.items()}
        faults = bound_faults(cls, values)
        if faults:
            self._refused(faults, table, place)
            return None
        try:
            value = cls(**values, **fixed)
        except ConfigError as err:
            self._refused(err.faults, table, place)
            return None
        except ValueError as err:
            self.faults.user.append(self._culprit(table, "", str(err)).fault(str(err), "", place))
            return None
        nodes: dict[str, Node] = {}
        for name, setting in settings_of(cls).items():
            if name in made:
                nodes[name] = made[name].node
            elif name not in fixed and setting.default is not None:
                nodes[name] = described(setting.default, self.registry)
                self.note(setting.default)
        return Built(value, Node(nodes, table.origin))

    def _refused(self, faults: Iterable[Fault], table: Node, place: str) -> None:
        """Faults that a part finds in its settings, at the settings to blame."""
        for fault in faults:
            at = self._culprit(table, fault.path, fault.message)
            self.faults.user.append(at.fault(fault.message, fault.hint, place))

    def note(self, value: Any) -> None:
        """Write down where the parts of a value come from that was not built here."""
        for entry in entries_in(value, self.registry):
            self.provenance[f"{entry.kind}/{entry.name}"] = entry.origin

    def _culprit(self, table: Node, path: str, message: str) -> Node:
        """The node to blame for what a part refuses: a setting the error names, the user's if possible."""
        named = _along(table, path)[-1:]
        words_said = message.replace("=", " ").split()
        spoken = [node for key, node in table.table.items() if key in words_said and key != "use"]
        written = [n for suspect in (*named, *spoken, table) for n in suspect.walk() if n.origin.given]
        if written and not table.origin.given:
            return written[0]
        return named[0] if named else spoken[0] if len(spoken) == 1 else table


def _along(table: Node, path: str) -> list[Node]:
    """The nodes on the way of a dotted path, as far as they are there."""
    found: list[Node] = []
    for key in path.split("."):
        above = found[-1] if found else table
        if key in above.table:
            found.append(above.table[key])
        elif isinstance(above.value, list) and key.isdecimal() and int(key) < len(above.value):
            found.append(above.value[int(key)])
        else:
            break
    return found
