"""A validator for as much of JSON Schema, draft 2020-12, as ours uses."""

from __future__ import annotations

import re
from typing import Any


def accepts(schema: Any, value: Any, root: dict[str, Any]) -> bool:
    """A validator for as much of draft 2020-12 as the schema uses; any other keyword is an error."""
    known = {"$schema", "$defs", "$comment", "title", "description", "default", *_CHECKS}
    assert schema.keys() <= known, schema.keys() - known
    return all(_CHECKS[key](schema, value, root) for key in schema if key in _CHECKS)


def _type(schema: Any, value: Any, root: Any) -> bool:
    if isinstance(value, bool):
        return schema["type"] == "boolean"
    types = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    return schema["type"] != "null" and isinstance(value, types[schema["type"]])


def _properties(schema: Any, value: Any, root: Any) -> bool:
    return not isinstance(value, dict) or all(
        accepts(schema["properties"][k], v, root) for k, v in value.items() if k in schema["properties"]
    )


def _additional(schema: Any, value: Any, root: Any) -> bool:
    extra = schema["additionalProperties"]
    rest = (
        {k: v for k, v in value.items() if k not in schema.get("properties", {})}
        if isinstance(value, dict)
        else {}
    )
    return (
        not rest if extra is False else extra is True or all(accepts(extra, v, root) for v in rest.values())
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_CHECKS: dict[str, Any] = {
    "type": _type,
    "properties": _properties,
    "additionalProperties": _additional,
    "required": lambda s, v, r: not isinstance(v, dict) or set(s["required"]) <= v.keys(),
    "const": lambda s, v, r: v == s["const"],
    "enum": lambda s, v, r: v in s["enum"],
    "pattern": lambda s, v, r: not isinstance(v, str) or re.search(s["pattern"], v) is not None,
    "items": lambda s, v, r: not isinstance(v, list) or all(accepts(s["items"], x, r) for x in v),
    "prefixItems": lambda s, v, r: (
        not isinstance(v, list) or all(accepts(p, x, r) for p, x in zip(s["prefixItems"], v, strict=False))
    ),
    "minItems": lambda s, v, r: not isinstance(v, list) or len(v) >= s["minItems"],
    "maxItems": lambda s, v, r: not isinstance(v, list) or len(v) <= s["maxItems"],
    "minimum": lambda s, v, r: not _is_number(v) or v >= s["minimum"],
    "maximum": lambda s, v, r: not _is_number(v) or v <= s["maximum"],
    "exclusiveMinimum": lambda s, v, r: not _is_number(v) or v > s["exclusiveMinimum"],
    "exclusiveMaximum": lambda s, v, r: not _is_number(v) or v < s["exclusiveMaximum"],
    "minProperties": lambda s, v, r: not isinstance(v, dict) or len(v) >= s["minProperties"],
    "not": lambda s, v, r: not accepts(s["not"], v, r),
    "anyOf": lambda s, v, r: any(accepts(o, v, r) for o in s["anyOf"]),
    "oneOf": lambda s, v, r: sum(accepts(o, v, r) for o in s["oneOf"]) == 1,
    "$ref": lambda s, v, r: accepts(r["$defs"][s["$ref"].removeprefix("#/$defs/")], v, r),
}
