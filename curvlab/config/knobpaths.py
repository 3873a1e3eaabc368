"""Whether the knobs of a method file lead anywhere: every path must end at a setting that exists."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from curvlab.config.describe import described
from curvlab.config.knobs import Knob, MethodFile, read_method, refuse
from curvlab.config.merge import entry_index, merge, no_entry
from curvlab.config.schema import (
    REQUIRED,
    element,
    is_mapping,
    is_record,
    kind_of,
    members,
    settings_of,
)
from curvlab.config.tree import Node
from curvlab.engine.method import Method
from curvlab.errors import ConfigError, Fault
from curvlab.registry.imports import part_class
from curvlab.registry.kinds import METHOD
from curvlab.registry.records import MethodEntry
from curvlab.registry.registry import Registry
from curvlab.registry.suggest import advice

#: what was found to be in order, so that a method built many times is checked once
_checked: WeakKeyDictionary[Registry, set[str]] = WeakKeyDictionary()


def check_knob_paths(entry: MethodEntry, registry: Registry) -> None:
    """Raise ``PluginError`` naming file and key of every knob whose path leads nowhere."""
    done = _checked.setdefault(registry, set())
    if entry.path not in done:
        knob_types(read_method(entry), registry)
        done.add(entry.path)


def knob_types(file: MethodFile, registry: Registry) -> Mapping[str, Any]:
    """The type of the setting at each knob's first path; raises like ``check_knob_paths``."""
    faults: list[Fault] = []
    types: dict[str, Any] = {}
    for knob in file.knobs.values():
        ends = [
            _follow(file.composition, Method, path, _Trail(registry, knob, path, faults))
            for path in knob.paths
        ]
        types[knob.name] = ends[0]
    refuse(file.entry, faults)
    return types


class _Trail:
    """A knob's path while it is followed."""

    def __init__(self, registry: Registry, knob: Knob, path: tuple[str, ...], faults: list[Fault]) -> None:
        self.registry = registry
        self._knob, self._path, self._faults = knob, path, faults

    def ends(self, message: str, hint: str = "") -> None:
        self._faults.append(
            self._knob.node.fault(f"path {'.'.join(self._path)} does not exist: {message}", hint)
        )


def _follow(node: Node | None, annotation: Any, path: tuple[str, ...], trail: _Trail) -> Any:
    """The type of what stands at ``path`` below ``node``; a fault, if nothing can."""
    if not path:
        return annotation
    key, rest = path[0], path[1:]
    if node is None:
        return trail.ends(
            f"the table that should hold {key} is not in the file", "write that table in the method's file"
        )
    if isinstance(node.value, list):
        index = entry_index(node, key)
        inner = next((element(o) for o in members(annotation) if element(o) is not None), Any)
        return (
            trail.ends(*no_entry(node, key))
            if index is None
            else _follow(node.value[index], inner, rest, trail)
        )
    for option in members(annotation):
        if is_mapping(option):
            return _follow(node.table.get(key), element(option), rest, trail)
        cls = _settings_owner(node, option, trail)
        if cls is not None:
            return _into(node.as_table(), cls, path, trail)
    return trail.ends(f"{key} cannot be a setting, because the value before it has no settings")


def _into(table: Node, cls: type, path: tuple[str, ...], trail: _Trail) -> Any:
    """``_follow`` into a table whose keys are the settings of ``cls``."""
    key, rest = path[0], path[1:]
    use = table.use
    if cls is Method and use is not None:
        file = read_method(trail.registry.method(use, prefer=table.origin.distribution))
        if key in file.knobs and not rest:
            return knob_types(file, trail.registry)[key]
        table = merge(file.composition, table.without("use"), [], anew=True)
    settings = settings_of(cls)
    if key not in settings:
        return trail.ends(f"{use or cls.__name__} has no setting {key}", advice(key, settings, "Settings"))
    default, below = settings[key].default, table.table.get(key)
    if below is None and default is not None and default is not REQUIRED:
        below = described(default, trail.registry)
    return _follow(below, settings[key].annotation, rest, trail)


def _settings_owner(node: Node, option: Any, trail: _Trail) -> type | None:
    """The class whose settings a table fills."""
    kind = kind_of(option)
    if kind == METHOD:
        return Method
    if kind is None:
        return option if is_record(option) else None
    use = node.as_table().use
    if use is None:
        return None
    try:
        return part_class(trail.registry.part(kind, use, prefer=node.origin.distribution))
    except ConfigError:
        return None  # an unknown part: whoever builds the composition says so
