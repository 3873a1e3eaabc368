"""Bounds of numeric settings, written in their types: ``decay: Fraction = 0.95``.

A bound stands once, in the annotation.  Building from a configuration checks it, the JSON Schema states it,
and a part that Python code makes directly checks it by ``check_bounds`` in ``__post_init__``.
"""

from __future__ import annotations

import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from curvlab.errors import ConfigError, Fault

#: the largest finite number of float32: no setting but a limit is larger
LARGEST_FLOAT = (2 - 2**-23) * 2.0**127

#: whole numbers are those of 64 bits, as in TOML and in torch
SMALLEST_INT, LARGEST_INT = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Bounds:
    """The range of a number: ``least`` ≤ x ≤ ``most``, ``above`` < x < ``below``; each is optional.

    Infinity is refused unless ``infinite``, where it means “no limit”.
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    infinite: bool = False

    def hold(self, value: float) -> bool:
        """Whether ``value`` is inside; NaN never is."""
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
            and (math.isfinite(value) or (self.infinite and value > 0))
        )

    def __str__(self) -> str:
        """What a number must do, in the words of an error message: ``be ≥ 0 and < 1``."""
        one_sided = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        given = {side: at for side, at in one_sided.items() if at is not None}
        end = " (inf: no limit)" if self.infinite else ""
        if not given:
            return "be finite"
        if len(given) == 1:
            ((side, at),) = given.items()
            at_zero = {"at least": "not be negative", "above": "be positive", "below": "be negative"}
            return at_zero[side] + end if at == 0 and side in at_zero else f"be {side} {_shown(at)}{end}"
        if self.least is not None and self.least == self.most:
            return f"be {self.least:g}"
        signs = {"at least": "≥", "above": ">", "at most": "≤", "below": "<"}
        return "be " + " and ".join(f"{signs[side]} {at:g}" for side, at in given.items())

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> Any:
        """The JSON Schema of the annotated type, with this range: pydantic asks each annotation for it."""
        found = dict(handler(core_schema))
        names = {
            "minimum": self.least,
            "exclusiveMinimum": self.above,
            "maximum": self.most,
            "exclusiveMaximum": self.below,
        }
        found.update({name: at for name, at in names.items() if at is not None})
        return found if self.infinite else bounded_schema(found)


def _shown(at: float) -> str:
    return f"{at:,}" if isinstance(at, int) else f"{at:g}"


def bounded_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a number, with the largest numbers there are where it has no other limits."""
    largest = {"number": (-LARGEST_FLOAT, LARGEST_FLOAT), "integer": (SMALLEST_INT, LARGEST_INT)}
    if schema.get("type") not in largest:
        return schema
    low, high = largest[schema["type"]]
    lower = {} if {"minimum", "exclusiveMinimum"} & schema.keys() else {"minimum": low}
    upper = {} if {"maximum", "exclusiveMaximum"} & schema.keys() else {"maximum": high}
    return {**schema, **lower, **upper}


def takes_infinity(annotation: Any) -> bool:
    """Whether a type says somewhere that infinity means “no limit”."""
    return any(bounds.infinite for bounds in _bounds_in(annotation))


#: x > 0
Positive = Annotated[float, Bounds(above=0)]
#: x > 0, or ``inf`` for no limit
Limit = Annotated[float, Bounds(above=0, infinite=True)]
#: x ≥ 0
NotNegative = Annotated[float, Bounds(least=0)]
#: 0 ≤ x < 1
Fraction = Annotated[float, Bounds(least=0, below=1)]
#: 0 ≤ x ≤ 1
Portion = Annotated[float, Bounds(least=0, most=1)]
#: 0 < x < 1
Inside = Annotated[float, Bounds(above=0, below=1)]
#: 0 < x ≤ 1
Share = Annotated[float, Bounds(above=0, most=1)]
#: x > 1, the ratio of a geometric series; or 0 for none
Ratio = Annotated[float, Bounds(least=0, most=0)] | Annotated[float, Bounds(above=1)]
#: a whole number ≥ 1
Count = Annotated[int, Bounds(least=1)]
#: a width: of 2²⁴ and more the bytes of a matrix's square cannot be counted in 64 bits
Width = Annotated[int, Bounds(least=1), Bounds(most=2**24)]
#: how often a module is repeated: each is built, in a dry run too
Depth = Annotated[int, Bounds(least=1), Bounds(most=1000)]
#: a whole number ≥ 0
Natural = Annotated[int, Bounds(least=0)]


def check_bounds(part: Any) -> None:
    """Raise ``ConfigError`` with every field of a dataclass that is outside the bounds of its type."""
    cls: type = type(part)
    faults = bound_faults(cls, {name: getattr(part, name) for name in _bounded(cls)})
    if faults:
        raise ConfigError(*faults)


def bound_faults(cls: type, values: Mapping[str, Any]) -> list[Fault]:
    """A fault for each value, by the name of its field, that is outside the bounds of the field's type."""
    bounded = _bounded(cls)
    found = []
    for name, value in values.items():
        if name in bounded:
            for at, wrong, words in _outside(bounded[name], name, value):
                found.append(Fault(f"{at} = {wrong!r} must {words}", path=at))
    return found


@cache
def _bounded(cls: type) -> Mapping[str, Any]:
    """The types of those fields that have bounds."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {f.name: hints[f.name] for f in fields(cls) if any(_bounds_in(hints[f.name]))}


def _bounds_in(annotation: Any) -> Iterator[Bounds]:
    """Every bound that is written in a type."""
    if isinstance(annotation, Bounds):
        yield annotation
    for inner in get_args(annotation):
        yield from _bounds_in(inner)


def _outside(annotation: Any, at: str, value: Any) -> Iterator[tuple[str, Any, str]]:
    """The numbers in ``value`` that are out of bounds: where each stands, the number, its bounds in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [m for m in annotation.__metadata__ if isinstance(m, Bounds)]
        if _is_number(value):
            yield from ((at, value, str(b)) for b in bounds if not b.hold(value))
        else:
            yield from _outside(args[0], at, value)
    elif origin in (Union, UnionType):
        # of several types that a number may be, one has to take it
        wrong = [list(_outside(a, at, value)) for a in args if _fits(a, value)]
        if not wrong or any(not found for found in wrong):
            return
        if _is_number(value):
            yield (
                at,
                value,
                " or ".join(dict.fromkeys(words for ((_, _, words),) in wrong)).replace(" or be ", " or "),
            )
        else:
            yield from wrong[-1]
    elif origin is tuple and isinstance(value, (tuple, list)):
        types = [args[0]] * len(value) if args[-1] is Ellipsis else args
        for i, (inner, entry) in enumerate(zip(types, value, strict=False)):
            yield from _outside(inner, f"{at}.{i}", entry)
    elif isinstance(value, Mapping) and len(args) == 2:
        for key, entry in value.items():
            yield from _outside(args[1], f"{at}.{key}", entry)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _fits(annotation: Any, value: Any) -> bool:
    """Whether a value fits a member of a union, as far as bounds are concerned."""
    base = get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation
    if _is_number(value):
        return base in (int, float)
    return get_origin(base) is tuple and isinstance(value, (tuple, list))
