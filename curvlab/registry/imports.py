"""Import strings: ``package.module:Class``, resolved when a part is first used."""

from __future__ import annotations

import importlib
import os
import re
import sys
from contextlib import nullcontext
from typing import Any

from curvlab.errors import ConfigError, CurvlabError, Fault, PluginError, raised
from curvlab.registry.isolation import isolated
from curvlab.registry.kinds import PROTOCOLS
from curvlab.registry.obligations import in_words
from curvlab.registry.records import PartEntry

#: a regular expression for ``package.module:Class``
IMPORT_SHAPE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"


def is_import_string(text: str) -> bool:
    """Whether ``text`` has the form ``package.module:Class``."""
    return re.fullmatch(IMPORT_SHAPE, text) is not None


def require_imports(text: str) -> None:
    """Raise ``ConfigError`` if ``CURVLAB_IMPORTS`` forbids to import what a configuration names by its path.

    Importing a module runs its code.  ``1``, nothing and no such variable allow it, all else forbids it.
    """
    allowed = os.environ.get("CURVLAB_IMPORTS", "1")
    if allowed in ("", "1"):
        return
    raise ConfigError(
        Fault(
            f'"{text}" is an import string, which CURVLAB_IMPORTS={allowed} forbids',
            hint=f"An import of {text.partition(':')[0]} runs its code. Use a registered part"
            " (`curvlab parts` lists them), or set CURVLAB_IMPORTS=1 if you trust this configuration.",
        )
    )


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
        # streams are exchanged only where code of a module will run: other threads may be printing
        known = entry.factory.partition(":")[0] in sys.modules
        with nullcontext() if known else isolated():
            found = import_object(entry.factory)
    except KeyboardInterrupt:
        raise
    except BaseException as err:  # a part's module may raise anything, SystemExit included
        raise _cannot(entry, f"cannot be imported: {raised(err)}") from err
    wanted = protocol(entry.kind)
    if not (isinstance(found, type) and issubclass(found, wanted)):
        raise _cannot(entry, _of_another_kind(entry, found))
    if "__dataclass_fields__" not in vars(found):
        raise _cannot(entry, "is not a dataclass; make it a frozen dataclass whose fields are its settings")
    missing = in_words(found)
    if missing:
        raise _cannot(entry, f"cannot be made: {missing}")
    return found


def _of_another_kind(entry: PartEntry, found: Any) -> str:
    """What it is instead, if it is a part at all."""
    wrong = f"is not a subclass of {PROTOCOLS[entry.kind].replace(':', '.')}"
    if not isinstance(found, type):
        return f"{wrong}: expected a class, got {found!r:.60}"
    kinds = [kind for kind in PROTOCOLS if issubclass(found, protocol(kind))]
    if kinds:
        return f'{wrong}: expected kind "{entry.kind}", but {found.__name__} has kind "{" and ".join(kinds)}"'
    return f'{wrong}; a part of kind "{entry.kind}" must be one'


def _cannot(entry: PartEntry, why: str) -> CurvlabError:
    if entry.distribution:
        return PluginError(f'{entry.kind} "{entry.name}" ({entry.origin}): {entry.factory} {why}')
    return ConfigError(
        Fault(
            f'{entry.kind} "{entry.factory}" {why}',
            hint="write the name of a registered part (`curvlab parts` lists them),"
            " or package.module:Class with the package on PYTHONPATH",
        )
    )
