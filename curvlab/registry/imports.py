"""Import strings: ``package.module:Class``, resolved when a part is first used."""

from __future__ import annotations

import importlib
import re
from typing import Any

from curvlab.errors import ConfigError, CurvlabError, Fault, PluginError
from curvlab.registry.kinds import PROTOCOLS
from curvlab.registry.obligations import in_words
from curvlab.registry.records import PartEntry

#: a regular expression for ``package.module:Class``
IMPORT_SHAPE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"


def is_import_string(text: str) -> bool:
    """Whether ``text`` has the form ``package.module:Class``."""
    return re.fullmatch(IMPORT_SHAPE, text) is not None


def import_object(text: str) -> Any:
    """The object that an import string names; raises whatever importing raises."""
    module, _, qualified = text.partition(":")
    found: Any = importlib.import_module(module)
    for attribute in qualified.split("."):
        found = getattr(found, attribute)
    return found


def protocol(kind: str) -> type:
    """The protocol class of a kind."""
    found: type = import_object(PROTOCOLS[kind])
    return found


def part_class(entry: PartEntry) -> type:
    """The class behind a part's name, checked to implement its kind's protocol.

    Raises ``PluginError`` if the part is registered, ``ConfigError`` if a configuration named it by
    its import path: who can mend it differs.
    """
    try:
        found = import_object(entry.factory)
    except Exception as err:  # a part's module may raise anything
        raise _cannot(entry, f"cannot be imported: {type(err).__name__}: {err}") from err
    wanted = protocol(entry.kind)
    if not (isinstance(found, type) and issubclass(found, wanted)):
        raise _cannot(entry, _of_another_kind(entry, found))
    if "__dataclass_fields__" not in vars(found):
        raise _cannot(entry, "is not a dataclass; a part is a frozen dataclass whose fields are its settings")
    missing = in_words(found)
    if missing:
        raise _cannot(entry, f"cannot be made: {missing}")
    return found


def _of_another_kind(entry: PartEntry, found: Any) -> str:
    """What it is instead, if it is a part at all."""
    owed = f"is not a subclass of {PROTOCOLS[entry.kind].replace(':', '.')}"
    if not isinstance(found, type):
        return f"{owed}: it is no class, but {found!r:.60}"
    kinds = [kind for kind in PROTOCOLS if issubclass(found, protocol(kind))]
    if kinds:
        return f'{owed}: {found.__name__} is of kind {" and ".join(kinds)}, not "{entry.kind}"'
    return f'{owed}, as a part of kind "{entry.kind}" must be'


def _cannot(entry: PartEntry, why: str) -> CurvlabError:
    if entry.distribution:
        return PluginError(f'{entry.kind} "{entry.name}" ({entry.origin}): {entry.factory} {why}')
    return ConfigError(
        Fault(
            f'{entry.kind} "{entry.factory}" {why}',
            hint="use takes a registered part's name (`curvlab parts`) or package.module:Class on PYTHONPATH",
        )
    )
