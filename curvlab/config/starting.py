"""A configuration to start from: a task and a method, with every setting as a comment beside its default."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from curvlab.config.describe import described
from curvlab.config.field_notes import field_notes
from curvlab.config.knobs import read_method
from curvlab.config.schema import settings_of
from curvlab.config.toml_text import inline
from curvlab.config.tree import plain
from curvlab.engine.plan import RunSettings
from curvlab.registry.imports import part_class
from curvlab.registry.records import MethodEntry, PartEntry
from curvlab.registry.registry import Registry

#: the columns of a comment on lines of its own
_WIDTH = 100

#: what a setting without a default is set to, and refused with until it is replaced
MISSING = "REPLACE-ME"


def starting(registry: Registry, task: PartEntry, method: MethodEntry) -> str:
    """The text of a configuration that trains ``method`` on ``task`` for ten epochs.

    Every setting of the run, every setting of the task and every knob of the method stands there as a comment
    with its default.  A setting of the task without a default is set to ``MISSING``.
    """
    lines = [
        *_comment(f"{method.name} on {task.name}. Remove the # before a setting to change it."),
        *_comment("Settings below [method] that are no knobs: curvlab methods " + method.name),
        "",
        "[run]",
        f"name = {inline(f'{task.name}-{method.name}')}",
        "seed = 0",
        "epochs = 10  # or steps, or seconds",
        *_settings(registry, RunSettings, {}, without={"name", "seed", "epochs", "steps", "seconds"}),
        "",
        "[task]",
        f"use = {inline(registry.use(task))}  # {task.summary}",
        *_settings(registry, part_class(task), task.preset),
        "",
        "[method]",
        f"use = {inline(registry.use(method))}  # {method.summary}",
        *_knobs(method),
        "",
        "[precision]",
        'use = "float32"  # curvlab parts precision lists others',
        "",
        "[report]",
        'use = "console"  # curvlab parts reporter lists others',
    ]
    return "\n".join(lines) + "\n"


def _settings(
    registry: Registry, cls: type, preset: Mapping[str, Any], without: frozenset[str] | set[str] = frozenset()
) -> Iterator[str]:
    notes = field_notes(cls)
    for name, setting in settings_of(cls).items():
        if name in preset or name in without:
            continue
        note = notes.get(name, "")
        if setting.required:
            yield _line("", name, MISSING, f"{note}; it has no default" if note else "it has no default")
        elif setting.default is None:
            yield from _comment(f"{name}: not set; {note}" if note else f"{name}: not set")
        else:
            yield _line("# ", name, plain(described(setting.default, registry)), note)


def _knobs(method: MethodEntry) -> Iterator[str]:
    file = read_method(method)
    for knob in file.knobs.values():
        default = file.default(knob)
        if default is None:
            yield from _comment(f"{knob.name}: {knob.help}" if knob.help else knob.name)
        else:
            yield _line("# ", knob.name, default, knob.help)


def _line(start: str, key: str, value: Any, note: str) -> str:
    return f"{start}{key} = {inline(value)}" + (f"  # {note}" if note else "")


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="#   ")
