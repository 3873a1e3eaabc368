"""What a part's settings are: names, types and defaults, read from its dataclass."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from curvlab.engine.method import Method
from curvlab.errors import PluginError
from curvlab.protocols.structure import Gram, Group
from curvlab.registry.imports import protocol
from curvlab.registry.kinds import METHOD, PROTOCOLS

#: the default of a setting that has none
REQUIRED: Any = dataclasses.MISSING

_SEQUENCES = (tuple, list, Sequence)


@dataclass(frozen=True)
class Setting:
    """One setting of a part: a field of its dataclass."""

    name: str
    annotation: Any
    default: Any

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is REQUIRED


@cache
def settings_of(cls: type) -> Mapping[str, Setting]:
    """A dataclass's settings by name, in order; raises ``PluginError`` if its annotations cannot be read.

    A field whose metadata say ``"setting": False`` is none: a configuration cannot give it.
    """
    try:
        hints = typing.get_type_hints(cls, include_extras=True)
    except (NameError, TypeError) as err:
        raise PluginError(
            f"{cls.__module__}.{cls.__qualname__}: the types of its settings cannot be read: {err}; "
            "import these types outside `if TYPE_CHECKING`"
        ) from err
    found = {}
    for field in dataclasses.fields(cls):
        if field.init and field.metadata.get("setting", True):
            found[field.name] = Setting(field.name, hints[field.name], _default(field))
    return found


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def kind_of(annotation: Any) -> str | None:
    """The kind of part that an annotation's class stands for, ``"method"`` for a method, else ``None``."""
    cls = get_origin(annotation) or annotation
    return _kind_of_class(cls) if isinstance(cls, type) else None


@cache
def _kind_of_class(cls: type) -> str | None:
    if issubclass(cls, Method):
        return METHOD
    if issubclass(cls, (Gram, Group)):
        return "structure"
    return next((kind for kind in PROTOCOLS if issubclass(cls, protocol(kind))), None)


def members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, ``Annotated`` taken off; of anything else, itself."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0]) if has_parts(annotation) else (annotation,)
    if get_origin(annotation) in (Union, types.UnionType):
        return tuple(m for a in get_args(annotation) for m in members(a))
    return (annotation,)


def union(options: Sequence[Any]) -> Any:
    """The type of a value that is one of several."""
    return reduce(or_, options)


def has_parts(annotation: Any) -> bool:
    """Whether a value of this type holds parts, or records of settings, at any depth."""
    if is_record(annotation) or kind_of(annotation) is not None:
        return True
    return any(has_parts(a) for a in get_args(annotation) if a is not Ellipsis)


def is_record(annotation: Any) -> bool:
    """Whether it is a dataclass that is no part: a table of settings without ``use``."""
    return (
        isinstance(annotation, type) and dataclasses.is_dataclass(annotation) and kind_of(annotation) is None
    )


def element(annotation: Any) -> Any:
    """The type of a sequence's elements or of a mapping's values; ``None`` if it is neither."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin in _SEQUENCES and args and (origin is not tuple or args[-1] is Ellipsis):
        return args[0]
    return args[1] if is_mapping(annotation) else None


def is_mapping(annotation: Any) -> bool:
    """Whether it is a mapping from names to something."""
    origin = get_origin(annotation)
    return isinstance(origin, type) and issubclass(origin, Mapping) and len(get_args(annotation)) == 2


def words(annotation: Any) -> str:
    """A type in the words of an error message."""
    names = {
        float: "a number",
        int: "a whole number",
        bool: "true or false",
        str: "a string",
        Any: "anything",
    }
    options = [m for m in members(annotation) if m is not type(None)]
    if len(options) != 1:
        return " or ".join(dict.fromkeys(words(m) for m in options))
    only = options[0]
    if get_origin(only) is Annotated:
        return words(get_args(only)[0])
    if get_origin(only) is Literal:
        return "one of " + ", ".join(_quoted(v) for v in get_args(only))
    if isinstance(only, type) and issubclass(only, Enum):
        return "one of " + ", ".join(_quoted(m.value) for m in only)
    kind = kind_of(only)
    if kind is not None:
        return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"
    if element(only) is not None:
        return (
            f"a table of {words(element(only))}"
            if is_mapping(only)
            else f"an array, each {words(element(only))}"
        )
    return names.get(only, f"a {getattr(only, '__name__', only)}")


def _quoted(value: Any) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)
