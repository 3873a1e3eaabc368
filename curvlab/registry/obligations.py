"""What a class owes: the methods that its protocol leaves to it, each with a line of what it must do."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

#: how Python says that a class is abstract, from 3.10 to 3.14
_ABSTRACT = re.compile(r"Can't instantiate abstract class (\w+)")


@dataclass(frozen=True)
class Obligation:
    """A method or property that a class must define: its protocol, its signature and its purpose."""

    method: str
    protocol: str
    signature: str
    owes: str

    def __str__(self) -> str:
        return f"{self.signature}, required by {self.protocol}: {self.owes}"


def unmet(cls: type) -> tuple[Obligation, ...]:
    """The obligations that a class has not met, by name; none if it can be instantiated."""
    return tuple(_obligation(cls, name) for name in sorted(getattr(cls, "__abstractmethods__", ())))


def in_words(cls: type) -> str:
    """``Arrow does not define`` and every obligation on a line; nothing if all are met."""
    missing = unmet(cls)
    if not missing:
        return ""
    return f"{cls.__name__} does not define\n" + "\n".join(f"  {o}" for o in missing)


def explained(error: BaseException) -> str:
    """What an unmet obligation's ``TypeError`` means, in words; nothing for any other error."""
    found = _ABSTRACT.match(str(error)) if isinstance(error, TypeError) else None
    if found is None:
        return ""
    named = [cls for cls in _subclasses(object) if cls.__name__ == found[1] and inspect.isabstract(cls)]
    return in_words(named[-1]) if named else ""


def _obligation(cls: type, name: str) -> Obligation:
    home = next((c for c in reversed(cls.__mro__) if name in vars(c)), cls)
    owed: Any = vars(home)[name]
    function = owed.fget if isinstance(owed, property) else owed
    text = inspect.getdoc(function) or "see its class"
    first = " ".join(text.split("\n\n")[0].split())
    return Obligation(name, f"{home.__module__}.{home.__name__}", _signature(name, owed, function), first)


def _signature(name: str, owed: Any, function: Any) -> str:
    if isinstance(owed, property):
        return f"the property {name}"
    try:
        said = inspect.signature(function)
    except (TypeError, ValueError):
        return f"{name}(…)"
    arguments = [_argument(p) for p in said.parameters.values()]
    named = [k for k, p in enumerate(said.parameters.values()) if p.kind is p.KEYWORD_ONLY]
    if named:
        arguments.insert(named[0], "*")
    return f"{name}({', '.join(arguments)})"


def _argument(p: inspect.Parameter) -> str:
    star = "*" if p.kind is p.VAR_POSITIONAL else "**" if p.kind is p.VAR_KEYWORD else ""
    return star + p.name + ("" if p.default is p.empty else "=…")


def _subclasses(cls: type) -> Iterator[type]:
    """Every class of this process below ``cls``, the newest last."""
    seen: set[type] = set()
    waiting: list[type] = list(type.__subclasses__(cls))
    while waiting:
        found = waiting.pop(0)
        if found not in seen and not issubclass(found, type):
            seen.add(found)
            yield found
            waiting += type.__subclasses__(found)
