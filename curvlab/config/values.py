"""Plain values against their types: strict, and every fault at once."""

from __future__ import annotations

import json
from enum import Enum
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from curvlab.config.limits import unusable
from curvlab.config.schema import element, words
from curvlab.config.tree import Node, describe, plain
from curvlab.errors import Fault, PluginError
from curvlab.protocols.bounds import takes_infinity


def validated(node: Node, annotation: Any, place: str) -> tuple[Any, list[Fault]]:
    """The value as its type, and what is wrong with it.

    Strict: no string is read as a number, no boolean as an integer; a whole number does for a float.
    """
    value = plain(node)
    unfit = [
        n.fault(why, "write a number that fits float32, or a 64-bit integer", place)
        for n in node.walk()
        if (why := unusable(n.value, infinite=takes_infinity(annotation)))
    ]
    if unfit:
        return None, unfit
    try:
        return _validate(adapter(annotation), value), []
    except ValidationError as err:
        faults = {}
        for error in err.errors():
            at, inside = _locate(node, error["loc"])
            message = f"expected {words(annotation)}, got {describe(value)}"
            if error["type"] in _CONSTRAINTS:
                message = f"{_lower(error['msg'])}, got {describe(plain(at))}"
            elif inside and element(annotation) is not None:
                message = f"expected {words(element(annotation))}, got {describe(plain(at))}"
            faults[at.origin, message] = at.fault(message, "", place)
        return None, list(faults.values())


@cache
def adapter(annotation: Any) -> TypeAdapter[Any]:
    """Pydantic's validator for a type."""
    try:
        return TypeAdapter(annotation)
    except PydanticUserError as err:
        raise PluginError(
            f"a setting of type {annotation} cannot be read from a configuration: {err.message}"
        ) from err


def as_plain(value: Any) -> Any:
    """A setting's value as TOML can hold it; the inverse of ``validated``."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, dict):
        return {str(key): as_plain(v) for key, v in value.items()}
    if isinstance(value, (frozenset, set)):
        return sorted((as_plain(v) for v in value), key=str)
    if isinstance(value, (tuple, list)):
        return [as_plain(v) for v in value]
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)


#: pydantic's error types about a value of the right type, whose message says what is allowed
_CONSTRAINTS = frozenset(
    [
        "greater_than",
        "greater_than_equal",
        "less_than",
        "less_than_equal",
        "multiple_of",
        "finite_number",
        "too_short",
        "too_long",
        "string_too_short",
        "string_too_long",
        "string_pattern_mismatch",
        "value_error",
        "assertion_error",
    ]
)


def _validate(checker: TypeAdapter[Any], value: Any) -> Any:
    """Through JSON, whose strict mode reads arrays as tuples and strings as enums; dates have no JSON."""
    try:
        text = json.dumps(value)
    except TypeError:
        return checker.validate_python(value, strict=True)
    return checker.validate_json(text, strict=True)


def _locate(node: Node, loc: tuple[int | str, ...]) -> tuple[Node, bool]:
    """The deepest node on the way of pydantic's location, and whether that is below the top."""
    at = node
    for part in loc:
        if isinstance(part, int) and isinstance(at.value, list) and part < len(at.value):
            at = at.value[part]
        elif isinstance(part, str) and part in at.table:
            at = at.table[part]
    return at, at is not node


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
