"""From ``[method] use = "kfac", lr = 1e-3`` to the composition that it means."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from curvlab.config.knobs import PLACES, Knob, MethodFile, read_method
from curvlab.config.merge import NONE, at, merge, put
from curvlab.config.tree import Node, describe, plain
from curvlab.errors import ConfigError, Fault
from curvlab.protocols.schedule import Schedule
from curvlab.registry.records import MethodEntry
from curvlab.registry.registry import Registry
from curvlab.registry.suggest import advice


@dataclass(frozen=True)
class Composition:
    """A method spelled out: a table of places, and the method it came from, if it has a name."""

    entry: MethodEntry | None
    table: Node


def compose(method: Node, registry: Registry, faults: list[Fault]) -> Composition | None:
    """Spell a method out: its file's composition, the tables given under it, then its knobs.

    Faults of the configuration are appended, and ``None`` is returned if nothing can be composed.
    Raises ``PluginError`` for a method file that is faulty itself.
    """
    table = method.as_table()
    if not table.is_table:
        faults.append(
            method.fault(
                f"expected a method, got {describe(plain(table))}",
                'write use = "NAME" (`curvlab methods` lists the names), or write the parts of a method',
            )
        )
        return None
    if "use" not in table.table:
        return Composition(None, table)
    if table.use is None:
        faults.append(
            table.table["use"].fault(
                f"expected a name in quotes, got {describe(plain(table.table['use']))}",
                'for example use = "kfac"; `curvlab methods` lists the names',
            )
        )
        return None
    entry = _named(table, registry, faults)
    if entry is None:
        return None
    file = read_method(entry)
    table = table.without("use")
    knobs, places = _split(table, file, registry)
    for key, node in table.table.items():
        if key not in PLACES and key not in file.knobs:
            hint = advice(key, [*file.knobs, *PLACES], "Knobs and places")
            faults.append(node.fault(f"unknown key {key}", hint, f"method.{key}"))
    knobs = _with_implied(knobs, file)
    turned = _turn(file.composition, file, knobs)
    composed = merge(turned, Node(places, table.origin), faults, anew=True)
    return Composition(entry, _turn_again(composed, file, knobs, faults))


def _with_implied(given: dict[str, Node], file: MethodFile) -> dict[str, Node]:
    """The knobs that were given, and those that they imply; one that was given stays as it is."""
    found = dict(given)
    for name, node in given.items():
        for other, value in file.knobs[name].implies.items():
            found.setdefault(other, Node(value, node.origin))
    return found


def _named(table: Node, registry: Registry, faults: list[Fault]) -> MethodEntry | None:
    """The method that a table's ``use`` names."""
    named = table.table["use"]
    try:
        return registry.method(named.value, prefer=named.origin.distribution)
    except ConfigError as err:
        faults += [named.fault(fault.message, fault.hint) for fault in err.faults]
        return None


def _split(table: Node, file: MethodFile, registry: Registry) -> tuple[dict[str, Node], dict[str, Node]]:
    """What turns knobs, and what stands at places.

    ``damping`` is often both: a number or a schedule turns the knob, a part is put in the place.
    """
    knobs: dict[str, Node] = {}
    places: dict[str, Node] = {}
    for key, node in table.table.items():
        if key in PLACES and not (key in file.knobs and _turns_knob(node, PLACES[key], registry)):
            places[key] = node
        elif key in file.knobs:
            knobs[key] = node
    return knobs, places


def _turns_knob(node: Node, kind: str, registry: Registry) -> bool:
    if isinstance(node.value, (int, float, Schedule)):
        return True
    names = {entry.name for entry in registry.parts(kind)}
    schedules = {entry.name for entry in registry.parts("schedule")}
    return node.use in schedules and node.use not in names


def _turn(composed: Node, file: MethodFile, given: Mapping[str, Node]) -> Node:
    """Set each knob's value at its paths; of two knobs for one path the more specific comes last."""
    for name in _general_first(file, given):
        for path in file.knobs[name].paths:
            composed = put(composed, path, given[name], [], anew=True) or composed
    return composed


def _turn_again(composed: Node, file: MethodFile, given: Mapping[str, Node], faults: list[Fault]) -> Node:
    """After the tables under ``[method]`` were merged: knobs that they buried, or contradict.

    A table that puts another part in a place (``step = "armijo"``) buries a knob (``lr``), which is
    then set again.  Where a table sets a knob's very setting, the later layer wins; in one layer
    that is a contradiction, unless the knob means several places and the table is more specific.
    """
    origins = [node.origin for node in given.values()]
    for name in _general_first(file, given):
        knob, value, reached = file.knobs[name], given[name], False
        for path in knob.paths:
            standing = at(composed, path)
            if standing is not None and (standing.origin in origins or _holds(standing, value)):
                reached = True
            elif standing is not None and standing.origin.given and standing.origin.rank >= value.origin.rank:
                reached = True
                if len(knob.paths) == 1 and _contradicts(standing, value, path):
                    faults.append(_twice(value, standing, file, knob))
            else:
                changed = put(composed, path, value, faults, anew=True)
                composed, reached = changed or composed, reached or changed is not None
        if not reached:
            where = " and ".join(knob.written())
            faults.append(
                value.fault(f'knob {name} sets {where}, but that place is "{NONE}"', "remove one of the two")
            )
    return composed


def _general_first(file: MethodFile, given: Mapping[str, Node]) -> list[str]:
    return sorted(given, key=lambda name: -len(file.knobs[name].paths))


def _holds(standing: Node, value: Node) -> bool:
    """Whether a knob's table of settings, without ``use``, is still there."""
    return value.is_table and value.use is None and set(value.table) <= set(standing.table)


def _contradicts(standing: Node, value: Node, path: tuple[str, ...]) -> bool:
    """Whether knob and setting stand in one layer and one table; one handed down to a fallback is general."""
    table = value.origin.path.rpartition(".")[0]
    written = standing.origin.path.removeprefix(f"{table}." if table else "").split(".")
    return standing.origin.rank == value.origin.rank and len(written) == len(path)


def _twice(value: Node, standing: Node, file: MethodFile, knob: Knob) -> Fault:
    return value.fault(
        f"knob {knob.name} of {file.entry.name} and {standing.origin.path} set the same value twice"
        f" ({describe(plain(value))} and {describe(plain(standing))})",
        "keep one of the two and remove the other",
    )
