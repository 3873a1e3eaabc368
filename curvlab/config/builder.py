"""Builds parts from a tree, and beside each what it was made from with every value spelled out.

A fault does not stop the rest: everything that can be judged is, and all faults are reported at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from curvlab.config.composition import compose
from curvlab.config.describe import described, entries_in
from curvlab.config.knobpaths import check_knob_paths
from curvlab.config.knobplaces import places_of
from curvlab.config.knobs import read_method
from curvlab.config.limits import unusable
from curvlab.config.merge import NONE
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
from curvlab.errors import ConfigError, CurvlabError, Fault, PluginError, raised
from curvlab.protocols.bounds import bound_faults
from curvlab.registry.identity import PROJECT
from curvlab.registry.imports import part_class
from curvlab.registry.kinds import METHOD
from curvlab.registry.records import PartEntry
from curvlab.registry.registry import Registry
from curvlab.registry.suggest import advice, nearest

#: the place of a method that may be filled by another method's name, which then lends what stands there
LENT = "preconditioner"


@dataclass(frozen=True)
class Built:
    """What was made, and the tree that makes it again."""

    value: Any
    node: Node


@dataclass
class Builder:
    """Builds against one registry; collects faults and the origin of every part in use."""

    registry: Registry
    faults: list[Fault] = field(default_factory=list)
    plugin_faults: list[Fault] = field(default_factory=list)
    provenance: dict[str, str] = field(default_factory=dict)
    _fallbacks: tuple[str, ...] = ()

    def raise_faults(self) -> None:
        """``PluginError`` if a plugin is to blame for any fault, ``ConfigError`` if the user is."""
        found = list(dict.fromkeys([*self.plugin_faults, *self.faults]))
        found.sort(key=lambda f: (f.file or "", f.line or 0, f.column or 0))
        if self.plugin_faults:
            raise PluginError("\n".join(str(fault) for fault in found))
        if found:
            raise ConfigError(*found)

    def blame(self, node: Node, message: str, hint: str = "", place: str = "") -> None:
        """Record a fault of ``node``: the plugin's, if its method file wrote it."""
        faults = self.plugin_faults if node.origin.distribution else self.faults
        faults.append(node.fault(message, hint, place))

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
            return self.part(node, self._pick(node, parts), place)
        if parts and (node.is_table or self._names_part(node, parts)):
            return self.part(node, self._pick(node, parts), place)
        if any(isinstance(node.value, _class(o)) for o in parts):
            self._note(node.value)
            return Built(node.value, described(node.value, self.registry, node.origin))
        if simple and not validated(node, union(simple), place)[1]:
            return self._plain(node, union(simple), place)
        return self._wrong(node, annotation, place)

    def _plain(self, node: Node, annotation: Any, place: str) -> Built | None:
        value, faults = validated(node, annotation, place)
        (self.plugin_faults if node.origin.distribution else self.faults).extend(faults)
        return None if faults else Built(value, node_of(as_plain(value), lambda path: node.origin))

    def _wrong(self, node: Node, annotation: Any, place: str) -> Built | None:
        hints = []
        for option in members(annotation):
            kind = kind_of(element(option) or option)
            if kind:
                names = sorted({e.name for e in self._named(kind)})
                hints.append(f'{kind.capitalize()}s, as "NAME" or {{ use = "NAME", … }}: {", ".join(names)}.')
        unfit = unusable(node.value)
        message = unfit or f"expected {words(annotation)}, got {describe(node.value)}"
        self.blame(node, message, "\n  ".join(dict.fromkeys(hints)), place)
        return None

    def _named(self, kind: str) -> Sequence[Any]:
        return list(self.registry.method_entries() if kind == METHOD else self.registry.parts(kind))

    def _names_part(self, node: Node, parts: Sequence[Any]) -> bool:
        use = node.use
        if use is None:
            return False
        return ":" in use or any(use == e.name for o in parts for e in self._named(str(kind_of(o))))

    def _pick(self, node: Node, parts: Sequence[Any]) -> Any:
        """The one of several fitting kinds that knows the name."""
        return next((o for o in parts if self._names_part(node, [o])), parts[0])

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
        return None if made is None else self._construct(cls, made, {}, node, place)

    def part(self, node: Node, annotation: Any, place: str) -> Built | None:
        """A part, from a name or from a table with ``use``."""
        kind = str(kind_of(annotation))
        if kind == METHOD:
            return self.method(node, place)
        table = node.as_table()
        if table.use is None:
            names = sorted({entry.name for entry in self.registry.parts(kind)})
            wrong = table.table.get("use", table)
            what = f'use = "NAME" is missing; NAME is the name of the {kind}'
            if wrong is not table:
                what = f"expected a name in quotes, got {describe(wrong.value)}"
            self.blame(wrong, what, f"Known: {', '.join(names)}.", place)
            return None
        if kind == LENT and not self._names_part(table, [annotation]) and self._names_method(table.use):
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
            self.blame(given, message, f"remove {key}", place)
        made = self._fields(table.without("use", *fixed), free, place, f'{kind} "{entry.name}"')
        if made is None or fixed:
            return None
        try:
            built = self._construct(cls, made, entry.preset, table, place)
        except KeyboardInterrupt:
            raise
        except BaseException as err:  # a part may raise anything; what core raises is a bug of ours
            if entry.distribution == PROJECT:
                raise
            fault = table.fault(
                f'{kind} "{entry.name}" ({entry.origin}) cannot be made: {raised(err)}', "", place
            )
            (self.plugin_faults if entry.distribution else self.faults).append(fault)
            return None
        if built is None or not self._can(built.value, annotation, table, place):
            return None
        use = Node(self.registry.use(entry), table.table["use"].origin)
        return Built(built.value, Node({"use": use, **built.node.table}, node.origin))

    def _names_method(self, use: str) -> bool:
        return any(use in (entry.name, self.registry.use(entry)) for entry in self.registry.method_entries())

    def _lent(self, table: Node, place: str) -> Node | None:
        """A method's preconditioner, where the method is named in a preconditioner's place.

        Its knobs set the preconditioner alone; one that turns another part of the method would do nothing.
        """
        before = len(self.faults)
        composition = compose(table, self.registry, self.faults)
        if composition is None or composition.entry is None:
            return None
        knobs = read_method(composition.entry).knobs
        for key, node in table.without("use").table.items():
            paths = knobs[key].paths if key in knobs else ((key,),)
            if any(path[0] != LENT for path in paths):
                message = f"{key} is not a setting of {table.use}'s preconditioner"
                self.blame(node, message, f"remove it, or set method.{key}", _below(place, key))
        if len(self.faults) > before or LENT not in composition.table.table:
            return None
        self.provenance[f"{METHOD}/{composition.entry.name}"] = composition.entry.origin
        return composition.table.table[LENT]

    def method(self, node: Node, place: str) -> Built | None:
        """A method: its composition, its fallback included."""
        before = len(self.faults)
        try:
            composition = compose(node, self.registry, self.faults)
            if composition is not None and composition.entry is not None:
                check_knob_paths(composition.entry, self.registry)
        except PluginError as err:
            self.plugin_faults.append(node.fault(str(err), "", place))
            return None
        if composition is None:
            return None
        entry, outer = composition.entry, self._fallbacks
        name = "composed here" if entry is None else entry.name
        if node.origin.distribution and name in outer:
            self.blame(
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
        if made is None or len(self.faults) > before:
            return None
        built = self._construct(Method, made, {}, composition.table, place)
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
                self.blame(named, fault.message, fault.hint)
            return None
        except PluginError as err:
            self.plugin_faults.append(named.fault(str(err)))
            return None
        self.provenance[f"{kind}/{entry.name}"] = entry.origin
        return entry, cls

    def _fields(
        self, table: Node, settings: Mapping[str, Setting], place: str, owner: str = ""
    ) -> dict[str, Built] | None:
        """Every setting that is given, by name; ``None`` after faults."""
        if not table.is_table:
            self.blame(table, f"expected a table, got {describe(table.value)}", "", place)
            return None
        given = {key: node for key, node in table.table.items() if key in settings}
        unknown = {key: node for key, node in table.table.items() if key not in settings}
        for key, node in unknown.items():
            message = f"{owner} has no setting {key}" if owner else f"unknown key {key}"
            hint = advice(key, settings, "Settings" if owner else "Keys")
            self.blame(node, message, hint, _below(place, key))
        misspelt = {nearest(key, settings) for key in unknown}
        missing = [s for s in settings.values() if s.required and s.name not in {*given, *misspelt}]
        for setting in missing:
            self.blame(table, f"{owner or place} needs {setting.name}", self._how(setting), place)
        built = {k: self.value(node, settings[k].annotation, _below(place, k)) for k, node in given.items()}
        made = {key: value for key, value in built.items() if value is not None}
        return made if len(made) == len(built) and not unknown and not missing else None

    def _how(self, setting: Setting) -> str:
        """How a missing setting is written."""
        kind = kind_of(members(setting.annotation)[0])
        known = ", ".join(sorted({entry.name for entry in self._named(kind)})) if kind else ""
        return f"Write {setting.name} = …, {words(setting.annotation)}" + (f": {known}." if known else ".")

    def _construct(
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
            self.faults.append(self._culprit(table, "", str(err)).fault(str(err), "", place))
            return None
        nodes: dict[str, Node] = {}
        for name, setting in settings_of(cls).items():
            if name in made:
                nodes[name] = made[name].node
            elif name not in fixed and setting.default is not None:
                nodes[name] = described(setting.default, self.registry)
                self._note(setting.default)
        return Built(value, Node(nodes, table.origin))

    def _refused(self, faults: Iterable[Fault], table: Node, place: str) -> None:
        """Faults that a part finds in its settings, at the settings to blame."""
        for fault in faults:
            at = self._culprit(table, fault.path, fault.message)
            self.faults.append(at.fault(fault.message, fault.hint, place))

    def _note(self, value: Any) -> None:
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

    def _can(self, part: Any, annotation: Any, table: Node, place: str) -> bool:
        """Whether a part has the capability that its place asks for (a structure that must be a ``Gram``)."""
        wanted = _class(annotation)
        if isinstance(part, wanted):
            return True
        kind = str(kind_of(annotation))
        able = []
        for entry in self.registry.parts(kind):
            try:
                able += [entry.name] if issubclass(part_class(entry), wanted) else []
            except CurvlabError:
                continue  # a part that cannot be imported is no help here; it is reported where it is used
        message = f'expected a {kind} that is a {wanted.__name__}, and "{table.use}" is not'
        self.faults.append(
            table.fault(
                message,
                f"Use one of: {', '.join(able)}."
                if able
                else f"No registered {kind} is a {wanted.__name__}.",
                place,
            )
        )
        return False


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


def _below(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _class(annotation: Any) -> type:
    found: type = getattr(annotation, "__origin__", annotation)
    return found
