"""JSON Schema (draft 2020-12) of a configuration, from the parts that are installed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from curvlab.config.knobpaths import knob_types
from curvlab.config.knobs import PLACES, read_method
from curvlab.config.layers import EXTENDS
from curvlab.config.run_table import BUDGETS
from curvlab.config.schema import (
    Setting,
    element,
    has_parts,
    is_mapping,
    is_record,
    kind_of_or_none,
    members,
    settings_of,
    union,
)
from curvlab.config.values import adapter
from curvlab.engine.plan import RunSettings
from curvlab.errors import PluginError
from curvlab.registry.imports import part_class
from curvlab.registry.kinds import METHOD, PROTOCOLS
from curvlab.registry.records import PartEntry
from curvlab.registry.registry import Registry

Schema = dict[str, Any]

#: ``use = "package.module:Class"``: a part that is imported, whose settings are not known here
_IMPORTED: Schema = {
    "type": "object",
    "properties": {"use": {"type": "string", "pattern": r"^[\w.-]+:[\w.-]+$"}},
    "required": ["use"],
}


def json_schema(registry: Registry) -> Schema:
    """The schema; parts that cannot be imported are left out and named in ``$comment``."""
    work = _Work(registry)
    kinds = {kind: work.kind(kind) for kind in PROTOCOLS}
    kinds[METHOD] = work.methods()
    run = work.table(settings_of(RunSettings), "the budget, the seed, and what is logged and kept")
    run["oneOf"] = [{"required": [name]} for name in BUDGETS]
    tables = {
        "run": run,
        **{name: _ref(kind) for name, kind in (("task", "task"), ("method", METHOD))},
        **{
            name: {"anyOf": [_ref(kind), _without_use()]}
            for name, kind in (("sampler", "sampler"), ("precision", "precision"), ("report", "reporter"))
        },
        EXTENDS: {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    }
    schema: Schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "curvlab configuration",
        "type": "object",
        "properties": tables,
        "additionalProperties": False,
        "$defs": {**kinds, **work.defs},
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

    def kind(self, kind: str) -> Schema:
        """Any part of a kind: by name alone where no setting is required, or as a table."""
        alone, tables = [], []
        for entry in self.registry.parts(kind):
            try:
                settings = settings_of(part_class(entry))
                free = {name: s for name, s in settings.items() if name not in entry.preset}
                tables.append(self.table(free, entry.summary, use=entry))
            except PluginError as err:
                self.left_out.append(str(err))
                continue
            if not any(s.required for s in free.values()):
                alone.append(entry.name)
        names = [{"enum": sorted(set(alone))}] if alone else []
        return {"anyOf": [*names, {"type": "string", "pattern": ":"}, *tables, _IMPORTED]}

    def methods(self) -> Schema:
        """Any method: by name, by name with knobs and changed places, or composed in place."""
        named, names = [], []
        for entry in self.registry.method_entries():
            try:
                file = read_method(entry)
                types = knob_types(file, self.registry)
            except PluginError as err:
                self.left_out.append(str(err))
                continue
            places = {place: {"anyOf": [self._place(place), _without_use()]} for place in PLACES}
            properties: Schema = {"use": {"const": entry.name}, **places}
            for name, knob in file.knobs.items():
                options = [self.value(types[name]), *([places[name]] if name in PLACES else [])]
                properties[name] = {
                    "description": knob.help or f"sets {', '.join(knob.written())}",
                    "anyOf": options,
                }
            named.append(_object(properties, ["use"], entry.summary))
            names.append(entry.name)
        inline = _object(
            {place: self._place(place) for place in PLACES}, ["preconditioner", "damping", "step"], ""
        )
        return {"anyOf": [{"enum": sorted(set(names))}, *named, inline]}

    def table(self, settings: Mapping[str, Setting], summary: str, use: PartEntry | None = None) -> Schema:
        """An object with these settings, and ``use`` if it is a part."""
        properties: Schema = {"use": {"const": use.name}} if use else {}
        properties.update({name: self.value(s.annotation) for name, s in settings.items()})
        required = [*(["use"] if use else []), *(s.name for s in settings.values() if s.required)]
        return _object(properties, required, summary)

    def value(self, annotation: Any) -> Schema:
        """A value of an annotated type; ``None`` is what is not written."""
        simple = [m for m in members(annotation) if not has_parts(m) and m is not type(None)]
        options = [self._composed(m) for m in members(annotation) if has_parts(m)]
        if simple:
            options.append(self._plain(union(simple)))
        elif type(None) in members(annotation):
            options.append({"const": "none"})
        return options[0] if len(options) == 1 else {"anyOf": options}

    def _composed(self, annotation: Any) -> Schema:
        kind = kind_of_or_none(annotation)
        if kind is not None:
            return _ref(kind)
        if is_record(annotation):
            return self.table(settings_of(annotation), "")
        if is_mapping(annotation):
            return {"type": "object", "additionalProperties": self.value(element(annotation))}
        inner = element(annotation)
        return {"type": "array", "items": self.value(inner if inner is not None else get_args(annotation)[0])}

    def _plain(self, annotation: Any) -> Schema:
        found = adapter(annotation).json_schema(ref_template="#/$defs/{model}")
        self.defs.update(found.pop("$defs", {}))
        return found

    def _place(self, place: str) -> Schema:
        if place.startswith("on_"):
            return {"type": "array", "items": _ref(PLACES[place])}
        optional = [{"const": "none"}] if place in ("sampler", "fallback") else []
        return {"anyOf": [_ref(PLACES[place]), *optional]}


def _object(properties: Schema, required: list[str], summary: str) -> Schema:
    words = {"description": summary} if summary else {}
    return {
        "type": "object",
        **words,
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _without_use() -> Schema:
    """Settings laid over a part that is chosen elsewhere."""
    return {"type": "object", "not": {"required": ["use"]}}


def _ref(kind: str) -> Schema:
    return {"$ref": f"#/$defs/{kind}"}
