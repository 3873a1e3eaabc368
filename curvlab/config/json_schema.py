"""JSON Schema (draft 2020-12) of a configuration, from the parts that are installed.

Each kind of part has two definitions: ``$defs/step`` is a whole part, told apart by ``use``;
``$defs/step-settings`` is a table without ``use``, which changes settings of a part chosen elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, get_args

from curvlab.config.knobpaths import knob_types
from curvlab.config.knobs import MethodFile, read_method
from curvlab.config.layers import EXTENDS
from curvlab.config.merge import NONE
from curvlab.config.run_table import BUDGETS, NAME
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
)
from curvlab.config.values import adapter
from curvlab.engine.method import Method
from curvlab.engine.plan import RunSettings
from curvlab.errors import PluginError
from curvlab.protocols.bounds import bounded_schema
from curvlab.registry.imports import IMPORT_SHAPE, part_class
from curvlab.registry.kinds import METHOD, PROTOCOLS
from curvlab.registry.records import MethodEntry, PartEntry
from curvlab.registry.registry import Registry

Schema = dict[str, Any]

#: table -> kind, of those tables that are parts
_TABLES = {
    "task": "task",
    "method": METHOD,
    "sampler": "sampler",
    "precision": "precision",
    "average": "average",
    "report": "reporter",
}

#: ``package.module:Class``: a part that is imported, whose settings are not known here
_IMPORT: Schema = {"type": "string", "pattern": f"^{IMPORT_SHAPE}$"}
_IMPORTED: Schema = {"type": "object", "properties": {"use": _IMPORT}, "required": ["use"]}


def json_schema(registry: Registry) -> Schema:
    """The schema; parts that cannot be imported are left out and named in ``$comment``."""
    work = _Work(registry)
    for kind in PROTOCOLS:
        work.define_kind(kind)
    work.define_methods()
    run = work.table(settings_of(RunSettings), "the budget, the seed, and what is logged and kept")
    run["properties"]["name"]["pattern"] = f"^{NAME}$"
    run["not"] = _any([{"required": list(two)} for two in combinations(BUDGETS, 2)])
    # a task, a method and an average have no default, so their tables must say which
    tables = {
        name: _ref(kind)
        if kind in ("task", "average", METHOD)
        else _any([_ref(kind), _ref(f"{kind}-settings")])
        for name, kind in _TABLES.items()
    }
    tables["report"] = _any([tables["report"], {"type": "array", "items": _ref("reporter")}])
    tables["callbacks"] = {
        "type": "object",
        "additionalProperties": _any([_ref("callback"), _ref("callback-settings")]),
        "description": "what works around the method, by names of your own",
    }
    files = _any([{"type": "string"}, {"type": "array", "items": {"type": "string"}}])
    schema: Schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "curvlab configuration",
        **_object({"run": run, **tables, EXTENDS: files}),
        # what a file lacks may stand in one that it extends
        **_any([{"required": [EXTENDS]}, _whole(_any([{"required": [name]} for name in BUDGETS]))]),
        "$defs": work.defs,
    }
    if work.left_out:
        schema["$comment"] = "left out: " + "; ".join(work.left_out)
    return schema


class _Work:
    """The registry, and what is gathered for ``$defs`` on the way."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.defs: Schema = {}
        self.left_out: list[str] = []

    def define_kind(self, kind: str) -> None:
        """Any part of a kind: by name alone where no setting is required, or as a table."""
        alone: list[str] = []
        tables, over = [], _Options()
        for entry in self.registry.parts(kind):
            try:
                settings = settings_of(part_class(entry))
            except PluginError as err:
                self.left_out.append(str(err))
                continue
            free = {name: s for name, s in settings.items() if name not in entry.preset}
            names = _uses(entry)
            tables.append(self.table(free, entry.summary, use=names))
            properties = {name: self.value(s.annotation, over=True) for name, s in free.items()}
            over.add(properties)
            if not any(s.required for s in free.values()):
                alone += names
        self.defs[kind] = _any([_names(alone), _IMPORT, *tables, _IMPORTED])
        self.defs[f"{kind}-settings"] = over.table()

    def define_methods(self) -> None:
        """Any method: by name, by name with knobs and changed places, or composed in place."""
        places = settings_of(Method)
        over = _Options()
        over.add({place: self.value(s.annotation, over=True) for place, s in places.items()})
        named: list[Schema] = []
        names: list[str] = []
        for entry in self.registry.method_entries():
            try:
                file = read_method(entry)
                knobs = self._knobs(file, knob_types(file, self.registry))
            except PluginError as err:
                self.left_out.append(str(err))
                continue
            mine = _Options()
            mine.add({place: self.value(s.annotation, over=True) for place, s in places.items()})
            mine.add(knobs)
            over.add(knobs)
            use = _names(_uses(entry))
            named.append(_object({"use": use, **mine.properties()}, ["use"], entry.summary))
            names += _uses(entry)
        inline = self.table(places, "a method composed in place")
        self.defs[METHOD] = _any([_names(names), *named, inline])
        self.defs[f"{METHOD}-settings"] = over.table()

    def _knobs(self, file: MethodFile, types: Mapping[str, Any]) -> dict[str, Schema]:
        return {
            name: {
                **self.value(types[name], over=True),
                "description": knob.help or f"sets {', '.join(knob.written())}",
            }
            for name, knob in file.knobs.items()
        }

    def table(self, settings: Mapping[str, Setting], summary: str, use: Sequence[str] = ()) -> Schema:
        """An object with these settings, and one of the names ``use`` if it is a part."""
        properties: Schema = {"use": _names(use)} if use else {}
        properties.update({name: self.value(s.annotation) for name, s in settings.items()})
        required = [*(["use"] if use else []), *(s.name for s in settings.values() if s.required)]
        return _object(properties, required, summary)

    def value(self, annotation: Any, *, over: bool = False) -> Schema:
        """A value of an annotated type; laid ``over`` another, a part may be settings without ``use``."""
        simple = [m for m in members(annotation) if not has_parts(m) and m is not type(None)]
        options = [o for m in members(annotation) if has_parts(m) for o in self._composed(m, over)]
        if simple:
            options.append(self._plain(union(simple)))
        elif type(None) in members(annotation):
            options.append({"const": NONE})
        return _any(options)

    def _composed(self, annotation: Any, over: bool) -> list[Schema]:
        kind = kind_of(annotation)
        if kind is not None:
            return [_ref(kind), *([_ref(f"{kind}-settings")] if over else [])]
        if is_record(annotation):
            return [self.table(settings_of(annotation), "")]
        inner = element(annotation)
        if is_mapping(annotation):
            return [{"type": "object", "additionalProperties": self.value(inner, over=over)}]
        array = {"type": "array", "items": self.value(get_args(annotation)[0] if inner is None else inner)}
        addressed = {"type": "object", "additionalProperties": self.value(inner, over=True)}
        return [array, addressed] if over and inner is not None else [array]

    def _plain(self, annotation: Any) -> Schema:
        found = adapter(annotation).json_schema(ref_template="#/$defs/{model}")
        self.defs.update(found.pop("$defs", {}))
        limited: Schema = _limited(found)
        return limited


class _Options:
    """Settings of several parts, by name, with what any of them takes."""

    def __init__(self) -> None:
        self._found: dict[str, list[Schema]] = {}

    def add(self, properties: Mapping[str, Schema]) -> None:
        for name, schema in properties.items():
            options = self._found.setdefault(name, [])
            if schema not in options:
                options.append(schema)

    def properties(self) -> Schema:
        return {name: _any(options) for name, options in self._found.items()}

    def table(self) -> Schema:
        """Any of the settings, and no ``use``."""
        return _object(self.properties())


def _object(properties: Schema, required: Iterable[str] = (), summary: str = "") -> Schema:
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    if list(required):
        found["required"] = list(required)
    return {**found, "description": summary} if summary else found


def _whole(budget: Schema) -> Schema:
    """A file that says everything that has no default."""
    return {"required": ["run", "task", METHOD], "properties": {"run": budget}}


def _uses(entry: PartEntry | MethodEntry) -> list[str]:
    """The names by which a configuration may call an entry."""
    return [entry.name, f"{entry.distribution}:{entry.name}"]


def _limited(schema: Any) -> Any:
    """``schema`` in which no number is without limits."""
    if isinstance(schema, list):
        return [_limited(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    limits = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}
    found = {key: _limited(inner) for key, inner in schema.items()}
    return found if limits & schema.keys() else bounded_schema(found)


def _any(options: list[Schema]) -> Schema:
    return options[0] if len(options) == 1 else {"anyOf": options}


def _names(names: Iterable[str]) -> Schema:
    return {"enum": sorted(set(names))}


def _ref(kind: str) -> Schema:
    return {"$ref": f"#/$defs/{kind}"}
