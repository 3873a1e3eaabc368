"""Method files: their sections, and their knobs, the few settings that a user turns.

    [about]   summary, reference, needs: words for listings
    [knobs]   name = "step.lr", or a list of such paths, or { paths = […], help = "…", implies = {…} }
    [method]  the composition: which part stands at which place

``implies`` maps other knobs to the values that they take where this one is given and they are not.
A knob's path starts at ``[method]`` (the word ``method.`` may stand before it); an array is entered
by index or by its entries' ``use``: ``on_update.momentum.beta``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from curvlab.config.merge import at
from curvlab.config.source import Source
from curvlab.config.tree import Node, describe, plain
from curvlab.errors import Fault, PluginError
from curvlab.registry.records import MethodEntry
from curvlab.registry.suggest import advice

#: the places of a composition and the kind of part that each holds
PLACES: Mapping[str, str] = {
    "preconditioner": "preconditioner",
    "damping": "damping",
    "step": "step",
    "on_gradient": "transform",
    "on_update": "transform",
    "sampler": "sampler",
    "fallback": "method",
}

_SECTIONS = ("about", "knobs", "method")
_ABOUT = ("summary", "reference", "needs")


@dataclass(frozen=True)
class Knob:
    """One knob: the paths that it sets, relative to ``[method]``, a line of help, and what it implies."""

    name: str
    paths: tuple[tuple[str, ...], ...]
    help: str
    node: Node
    implies: Mapping[str, Any] = field(default_factory=dict)

    def written(self) -> tuple[str, ...]:
        """The paths as text."""
        return tuple(".".join(path) for path in self.paths)


@dataclass(frozen=True)
class MethodFile:
    """A method's file, read and checked as far as that goes without importing parts."""

    entry: MethodEntry
    knobs: Mapping[str, Knob]
    composition: Node

    def default(self, knob: Knob) -> Any:
        """What the composition says at a knob's first path, as plain data; ``None`` if it is silent."""
        found = at(self.composition, knob.paths[0])
        return None if found is None else plain(found)


@lru_cache(maxsize=256)
def read_method(entry: MethodEntry) -> MethodFile:
    """Read a method's file, once for an entry.

    Raises ``PluginError`` that names file, line and key of every fault.
    """
    source = Source(entry.path, entry.text, f"method {entry.name}", entry.distribution or "unknown")
    tree = source.tree(entry.document)
    faults = [
        node.fault(f"unknown section {key} in a method's file", advice(key, _SECTIONS, "Sections"))
        for key, node in tree.table.items()
        if key not in _SECTIONS
    ]
    about = tree.table.get("about", Node({}, tree.origin))
    for key, node in about.table.items():
        if key not in _ABOUT or not isinstance(node.value, str):
            faults.append(
                node.fault(
                    f"expected a string under a known key, got {describe(plain(node))}",
                    advice(key, _ABOUT, "Keys"),
                )
            )
    if not entry.summary.strip():
        faults.append(about.fault("summary is missing", 'write summary = "one line"', "about"))
    composition = tree.table.get("method")
    if composition is None or not composition.is_table:
        faults.append(
            tree.fault("section [method] is missing", "write the parts of the method in it", "method")
        )
        composition = Node({}, tree.origin)
    for key, node in composition.table.items():
        if key not in PLACES:
            faults.append(node.fault(f"unknown place {key}", advice(key, PLACES, "Places")))
    knobs = {
        name: _knob(name, node, faults)
        for name, node in tree.table.get("knobs", Node({}, tree.origin)).table.items()
    }
    for knob in knobs.values():
        for other in knob.implies:
            if other not in knobs or other == knob.name:
                hint = advice(other, [name for name in knobs if name != knob.name], "Knobs")
                faults.append(knob.node.fault(f"implies {other}, which is no other knob", hint))
    refuse(entry, faults)
    return MethodFile(entry, knobs, composition)


def refuse(entry: MethodEntry, faults: list[Fault]) -> None:
    """Raise ``PluginError`` if a method's file has faults."""
    if faults:
        lines = "\n".join(str(fault) for fault in faults)
        raise PluginError(f'method "{entry.name}" of {entry.origin} has errors in its file\n{lines}')


def _knob(name: str, node: Node, faults: list[Fault]) -> Knob:
    said: Any = plain(node)
    words, implies = "", {}
    if isinstance(said, dict):
        words, implies = said.get("help", ""), said.get("implies", {})
        unknown = set(said) - {"paths", "help", "implies"}
        if unknown or not isinstance(words, str) or not isinstance(implies, dict):
            faults.append(
                node.fault(
                    "expected a table with the keys paths and help, and perhaps implies",
                    'write { paths = "step.lr", help = "one line" }',
                )
            )
        said = said.get("paths", ())
    paths = [said] if isinstance(said, str) else said
    if not (isinstance(paths, list) and paths and all(isinstance(p, str) and p for p in paths)):
        faults.append(
            node.fault('expected a path such as "step.lr", or an array of paths', f'write {name} = "step.lr"')
        )
        paths = []
    split = tuple(tuple(p.removeprefix("method.").split(".")) for p in paths)
    return Knob(name, split, str(words), node, implies if isinstance(implies, dict) else {})
