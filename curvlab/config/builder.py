"""Builds parts from a tree, and beside each what it was made from with every value spelled out.

A fault does not stop the rest: everything that can be judged is, and all faults are reported at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from curvlab.config.composition import compose
from curvlab.config.construction import Built, Construction
from curvlab.config.describe import described
from curvlab.config.faults import Faults
from curvlab.config.knobpaths import check_knob_paths
from curvlab.config.knobplaces import places_of
from curvlab.config.knobs import read_method
from curvlab.config.limits import unusable
from curvlab.config.merge import NONE
from curvlab.config.named import Named
from curvlab.config.schema import (
    Setting,
    element,
    has_parts,
    is_mapping,
    is_record,
    kind_of,
    members,
    settings_of,
    union,
    words,
)
from curvlab.config.tree import Node, describe, node_of
from curvlab.config.values import as_plain, validated
from curvlab.engine.method import Method
from curvlab.errors import ConfigError, PluginError, raised
from curvlab.registry.identity import PROJECT
from curvlab.registry.imports import part_class
from curvlab.registry.kinds import METHOD
from curvlab.registry.records import PartEntry
from curvlab.registry.registry import Registry
from curvlab.registry.suggest import advice, nearest

#: the place of a method that may be filled by another method's name, which then lends what stands there
LENT = "preconditioner"


class Builder:
    """Builds against one registry; collects ``faults`` and the origin of every part in use.

    After a fault a method returns ``None`` and the rest is still judged; ``faults.raise_all()`` raises.
    """

    def __init__(self, registry: Registry) -> None:
        self.registry, self.named, self.faults = registry, Named(registry), Faults()
        self.construction = Construction(registry, self.faults)
        self._fallbacks: tuple[str, ...] = ()

    @property
    def provenance(self) -> dict[str, str]:
        """Where each part in use comes from, by kind and name."""
        return self.construction.provenance

    # -- by type -----------------------------------------------------------------------------

    def value(self, node: Node, annotation: Any, place: str) -> Built | None:
        """A value of an annotated type; ``None`` after a fault."""
        if not has_parts(annotation):
            return self._plain(node, annotation, place)
        options = members(annotation)
        if type(None) in options and node.value == NONE:
            return Built(None, node)
        parts = [o for o in options if kind_of(o)]
        simple = [o for o in options if not has_parts(o) and o is not type(None)]
        if isinstance(node.value, list):
            sequence = next((o for o in options if element(o) is not None and not is_mapping(o)), None)
            if sequence is None:
                return self._wrong(node, annotation, place)
            return self._array(node, sequence, place)
        if node.is_table and "use" not in node.table:
            for option in options:
                if is_mapping(option):
                    return self._mapping(node, option, place)
                if is_record(option):
                    return self.record(node, option, place)
        if parts and not simple and (node.is_table or isinstance(node.value, str)):
            return self.part(node, self.named.pick(node, parts), place)
        if parts and (node.is_table or self.named.is_part(node, parts)):
            return self.part(node, self.named.pick(node, parts), place)
        if any(isinstance(node.value, _class(o)) for o in parts):
            self.construction.note(node.value)
            return Built(node.value, described(node.value, self.registry, node.origin))
        if simple and not validated(node, union(simple), place)[1]:
            return self._plain(node, union(simple), place)
        return self._wrong(node, annotation, place)

    def _plain(self, node: Node, annotation: Any, place: str) -> Built | None:
        value, faults = validated(node, annotation, place)
        self.faults.add(faults, node.origin.distribution)
        return None if faults else Built(value, node_of(as_plain(value), lambda path: node.origin))

    def _wrong(self, node: Node, annotation: Any, place: str) -> Built | None:
        hints = []
        for option in members(annotation):
            kind = kind_of(element(option) or option)
            if kind:
                known = self.named.known(kind)
                hints.append(f'{kind.capitalize()}s, as "NAME" or {{ use = "NAME", … }}: {known}.')
        unfit = unusable(node.value)
        message = unfit or f"expected {words(annotation)}, got {describe(node.value)}"
        self.faults.blame(node, message, "\n  ".join(dict.fromkeys(hints)), place)
        return None

    def _array(self, node: Node, annotation: Any, place: str) -> Built | None:
        built = [self.value(n, element(annotation), f"{place}.{i}") for i, n in enumerate(node.value)]
        if any(b is None for b in built):
            return None
        done = [b for b in built if b is not None]
        return Built(tuple(b.value for b in done), Node([b.node for b in done], node.origin))

    def _mapping(self, node: Node, annotation: Any, place: str) -> Built | None:
        built = {k: self.value(n, element(annotation), f"{place}.{k}") for k, n in node.table.items()}
        done = {k: b for k, b in built.items() if b is not None}
        if len(done) < len(built):
            return None
        return Built(
            {k: b.value for k, b in done.items()}, Node({k: b.node for k, b in done.items()}, node.origin)
        )

    # -- tables ------------------------------------------------------------------------------

    def record(self, node: Node, cls: type, place: str) -> Built | None:
        """A dataclass that is no part, from a table."""
        made = self._fields(node, settings_of(cls), place)
        return None if made is None else self.construction.make(cls, made, {}, node, place)

    def part(self, node: Node, annotation: Any, place: str) -> Built | None:
        """A part, from a name or from a table with ``use``."""
        kind = str(kind_of(annotation))
        if kind == METHOD:
            return self.method(node, place)
        table = node.as_table()
        if table.use is None:
            wrong = table.table.get("use", table)
            what = f'use = "NAME" is missing; NAME is the name of the {kind}'
            if wrong is not table:
                what = f"expected a name in quotes, got {describe(wrong.value)}"
            self.faults.blame(wrong, what, f"Known: {self.named.known(kind)}.", place)
            return None
        if kind == LENT and not self.named.is_part(table, [annotation]) and self.named.is_method(table.use):
            lent = self._lent(table, place)
            return None if lent is None else self.part(lent, annotation, place)
        found = self._class(table, kind)
        if found is None:
            return None
        entry, cls = found
        settings = settings_of(cls)
        free = {name: s for name, s in settings.items() if name not in entry.preset}
        fixed = {key: node for key, node in table.table.items() if key in entry.preset}
        for key, given in fixed.items():
            message = f'{kind} "{entry.name}" fixes {key} = {entry.preset[key]!r}'
            self.faults.blame(given, message, f"remove {key}", place)
        made = self._fields(table.without("use", *fixed), free, place, f'{kind} "{entry.name}"')
        if made is None or fixed:
            return None
        try:
            built = self.construction.make(cls, made, entry.preset, table, place)
        except KeyboardInterrupt:
            raise
        except BaseException as err:  # a part may raise anything; what core raises is a bug of ours
            if entry.distribution == PROJECT:
                raise
            fault = table.fault(
                f'{kind} "{entry.name}" ({entry.origin}) cannot be made: {raised(err)}', "", place
            )
            self.faults.add([fault], entry.distribution)
            return None
        if built is None or not self._can(built.value, annotation, table, place):
            return None
        use = Node(self.registry.use(entry), table.table["use"].origin)
        return Built(built.value, Node({"use": use, **built.node.table}, node.origin))

    def _lent(self, table: Node, place: str) -> Node | None:
        """A method's preconditioner, where the method is named in a preconditioner's place.

        Its knobs set the preconditioner alone; one that turns another part of the method would do nothing.
        """
        before = len(self.faults.user)
        composition = compose(table, self.registry, self.faults.user)
        if composition is None or composition.entry is None:
            return None
        knobs = read_method(composition.entry).knobs
        for key, node in table.without("use").table.items():
            paths = knobs[key].paths if key in knobs else ((key,),)
            if any(path[0] != LENT for path in paths):
                message = f"{key} is not a setting of {table.use}'s preconditioner"
                self.faults.blame(node, message, f"remove it, or set method.{key}", _below(place, key))
        if len(self.faults.user) > before or LENT not in composition.table.table:
            return None
        self.provenance[f"{METHOD}/{composition.entry.name}"] = composition.entry.origin
        return composition.table.table[LENT]

    def method(self, node: Node, place: str) -> Built | None:
        """A method: its composition, its fallback included."""
        before = len(self.faults.user)
        try:
            composition = compose(node, self.registry, self.faults.user)
            if composition is not None and composition.entry is not None:
                check_knob_paths(composition.entry, self.registry)
        except PluginError as err:
            self.faults.plugin.append(node.fault(str(err), "", place))
            return None
        if composition is None:
            return None
        entry, outer = composition.entry, self._fallbacks
        name = "composed here" if entry is None else entry.name
        if node.origin.distribution and name in outer:
            self.faults.blame(
                node,
                f'method "{name}" is reached again through its own fallbacks',
                "name another fallback",
                place,
            )
            return None
        # a chain of fallbacks is endless only if method files, which repeat themselves, make it
        self._fallbacks = (*outer, name) if node.origin.distribution else ()
        made = self._fields(composition.table, settings_of(Method), place, f'method "{name}"')
        self._fallbacks = outer
        if made is None or len(self.faults.user) > before:
            return None
        built = self.construction.make(Method, made, {}, composition.table, place)
        if built is None or entry is None:
            return built
        self.provenance[f"{METHOD}/{entry.name}"] = entry.origin
        use = Node(self.registry.use(entry), node.as_table().table["use"].origin)
        method = replace(built.value, knobs=places_of(read_method(entry), built.value, composition.table))
        return Built(method, Node({"use": use, **built.node.table}, node.origin))

    # -- how ---------------------------------------------------------------------------------

    def _class(self, table: Node, kind: str) -> tuple[PartEntry, type] | None:
        named = table.table["use"]
        try:
            entry = self.registry.part(kind, named.value, prefer=named.origin.distribution)
            cls = part_class(entry)
            unknown = set(entry.preset) - set(settings_of(cls))
            if unknown:
                raise PluginError(
                    f'{kind} "{entry.name}" ({entry.origin}) presets {", ".join(sorted(unknown))}, '
                    f"but {cls.__name__} has no such setting"
                )
        except ConfigError as err:
            for fault in err.faults:
                self.faults.blame(named, fault.message, fault.hint)
            return None
        except PluginError as err:
            self.faults.plugin.append(named.fault(str(err)))
            return None
        self.provenance[f"{kind}/{entry.name}"] = entry.origin
        return entry, cls

    def _fields(
        self, table: Node, settings: Mapping[str, Setting], place: str, owner: str = ""
    ) -> dict[str, Built] | None:
        """Every setting that is given, by name; ``None`` after faults."""
        if not table.is_table:
            self.faults.blame(table, f"expected a table, got {describe(table.value)}", "", place)
            return None
        given = {key: node for key, node in table.table.items() if key in settings}
        unknown = {key: node for key, node in table.table.items() if key not in settings}
        for key, node in unknown.items():
            message = f"{owner} has no setting {key}" if owner else f"unknown key {key}"
            hint = advice(key, settings, "Settings" if owner else "Keys")
            self.faults.blame(node, message, hint, _below(place, key))
        misspelt = {nearest(key, settings) for key in unknown}
        missing = [s for s in settings.values() if s.required and s.name not in {*given, *misspelt}]
        for setting in missing:
            self.faults.blame(table, f"{owner or place} needs {setting.name}", self.named.how(setting), place)
        built = {k: self.value(node, settings[k].annotation, _below(place, k)) for k, node in given.items()}
        made = {key: value for key, value in built.items() if value is not None}
        return made if len(made) == len(built) and not unknown and not missing else None

    def _can(self, part: Any, annotation: Any, table: Node, place: str) -> bool:
        """Whether a part has the capability that its place asks for (a structure that must be a ``Gram``)."""
        wanted = _class(annotation)
        if isinstance(part, wanted):
            return True
        kind = str(kind_of(annotation))
        able = ", ".join(self.named.able(kind, wanted))
        message = f'expected a {kind} that is a {wanted.__name__}, and "{table.use}" is not'
        hint = f"Use one of: {able}." if able else f"No registered {kind} is a {wanted.__name__}."
        self.faults.user.append(table.fault(message, hint, place))
        return False


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _class(annotation: Any) -> type:
    found: type = getattr(annotation, "__origin__", annotation)
    return found
