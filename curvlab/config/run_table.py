"""The ``[run]`` table: its ranges, and the one budget that a run has."""

from __future__ import annotations

import re

from curvlab.config.tree import Node
from curvlab.engine.plan import MOST_THREADS, RunSettings
from curvlab.errors import Fault

BUDGETS = ("epochs", "steps", "seconds")

#: setting -> the least it may be
_LEAST = {
    "steps": 1,
    "log_every": 1,
    "eval_every": 1,
    "checkpoint_every": 1,
    "keep": 1,
    "threads": 1,
    "seed": 0,
}

#: torch's generators take no larger seed
_LARGEST_SEED = 2**63 - 1

#: a folder's name adds time and hash, and file systems take 255 bytes
_LONGEST_NAME = 200

_NAME = re.compile(r"[\w.+-]+")


def run_faults(table: Node, settings: RunSettings) -> list[Fault]:
    """Values of ``[run]`` that have the right type but cannot be meant."""
    faults = []

    def blame(name: str, message: str, hint: str) -> None:
        faults.append(table.table.get(name, table).fault(message, hint, f"run.{name}"))

    for name, least in _LEAST.items():
        value = getattr(settings, name)
        if value is not None and value < least:
            blame(name, f"{name} = {value} must be at least {least}", "write a larger number")
    for name in ("epochs", "seconds"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < float("inf"):
            blame(name, f"{name} = {value} must be positive and finite", "write a larger number")
    if settings.seed > _LARGEST_SEED:
        blame("seed", f"seed = {settings.seed} is too large", f"take one up to {_LARGEST_SEED}")
    if settings.threads is not None and settings.threads > MOST_THREADS:
        hint = "take as many as the processor has cores"
        blame("threads", f"threads = {settings.threads} must be at most {MOST_THREADS}", hint)
    if len(settings.name.encode(errors="replace")) > _LONGEST_NAME:
        length = len(settings.name.encode(errors="replace"))
        blame("name", f"a name of {length} bytes is too long", f"take one of up to {_LONGEST_NAME} bytes")
    elif not _NAME.fullmatch(settings.name) or settings.name.startswith("."):
        blame(
            "name",
            f"name = {settings.name!r} cannot begin a folder's name",
            'use letters, digits, ".", "_", "+", "-"',
        )
    return faults


def budget_faults(table: Node, *, whole: bool) -> list[Fault]:
    """A run has one budget.  Of a table that is not ``whole`` (it has faults) no budget is missed."""
    given = [name for name in BUDGETS if name in table.table]
    if not given and whole:
        hint = "write one of epochs, steps, seconds: epochs = 10"
        return [table.fault("says not how long to train", hint, "run")]
    if len(given) < 2:
        return []
    latest = max((table.table[name] for name in given), key=lambda node: node.origin.rank)
    message, hint = f"a run has one budget, got {' and '.join(given)}", f"keep one of {', '.join(given)}"
    return [latest.fault(message, hint, "run")]
