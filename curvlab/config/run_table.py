"""The ``[run]`` table: its name, and the one budget that a run has."""

from __future__ import annotations

import re

from curvlab.config.tree import Node
from curvlab.engine.plan import RunSettings
from curvlab.errors import LONGEST_KEY, Fault, shortened

BUDGETS = ("epochs", "steps", "seconds")

#: a folder's name adds time and hash, and file systems take 255 bytes
LONGEST_NAME = 200

#: what a run's name may be: the beginning of a folder's name
NAME = r"[\w+-][\w.+-]*"


def run_faults(table: Node, settings: RunSettings) -> list[Fault]:
    """Values of ``[run]`` that cannot be meant; the bounds of its numbers are in their types."""
    length = len(settings.name.encode(errors="replace"))
    if length > LONGEST_NAME:
        message, hint = (
            f"the name has {length} bytes, at most {LONGEST_NAME} are allowed",
            "use a shorter name",
        )
        return [table.table.get("name", table).fault(message, hint, "run.name")]
    if re.fullmatch(NAME, settings.name):
        return []
    message = f"name = {shortened(settings.name, LONGEST_KEY)!r} cannot begin a folder's name"
    hint = 'use letters, digits, ".", "_", "+", "-"'
    return [table.table.get("name", table).fault(message, hint, "run.name")]


def budget_faults(table: Node, *, whole: bool) -> list[Fault]:
    """A run has one budget.  A table that is not ``whole`` (it has faults) may lack it."""
    given = [name for name in BUDGETS if name in table.table]
    if not given and whole:
        hint = "add one of epochs, steps and seconds, for example epochs = 10"
        return [table.fault("the length of the training is missing", hint, "run")]
    if len(given) < 2:
        return []
    latest = max((table.table[name] for name in given), key=lambda node: node.origin.rank)
    message, hint = f"expected one budget, got {' and '.join(given)}", f"keep one of {', '.join(given)}"
    return [latest.fault(message, hint, "run")]
