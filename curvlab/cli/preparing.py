"""``curvlab tasks prepare``: makes a task's data, once, before any run.

Its options beside ``--to`` are the fields of the task's ``Preparation``, which is only known when the
task is; so they are read here and not by Typer.  Nothing here imports torch before a task is named.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from curvlab.cli.output import fitted, print_text
from curvlab.errors import UsageError
from curvlab.registry import PartEntry, installed
from curvlab.registry.suggest import advice

if TYPE_CHECKING:
    from curvlab.config.schema import Setting
    from curvlab.protocols.preparation import Preparation

#: how Typer registers ``prepare``: unknown options are the preparation's, and so is ``--help`` after a NAME
COMMAND: Mapping[str, Any] = {
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
}

_HOW = "curvlab tasks prepare NAME --to DIR [--OPTION VALUE]…"


def prepare(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The task.", show_default=False)] = None,
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="The folder to create.", show_default=False)
    ] = None,
    asked: Annotated[
        bool,
        typer.Option("--help", "-h", help="Show this message, or after a NAME the options of that task."),
    ] = False,
) -> None:
    """Make the data of a task once, in a folder for its runs."""
    if name is None:
        if not asked:
            raise UsageError(f"the name of a task is missing: {_HOW}")
        print_text(context.get_help())
        return
    if name.startswith("-"):
        raise UsageError(f"the option {name} must follow the name of the task: {_HOW}")
    registry = installed()
    entry = registry.part("task", name)
    cls = _preparation(entry)
    if asked:
        print_text(_help(entry, cls))
        return
    if to is None:
        raise UsageError(f"--to DIR is missing: {_HOW}")
    from curvlab.config.builder import Builder

    builder = Builder(registry)
    made = builder.record(_given(entry, cls, context.args), cls, "")
    builder.faults.raise_all()
    assert made is not None  # a builder that makes nothing has faults
    made.value.run(to.expanduser(), print_text)


def _preparation(entry: PartEntry) -> type[Preparation]:
    from curvlab.registry.imports import part_class

    cls: type[Preparation] | None = getattr(part_class(entry), "preparation", None)
    if cls is None:
        where = f": its data are {entry.source}" if entry.source else ""
        raise UsageError(f'task "{entry.name}" needs no preparation{where}')
    return cls


def _given(entry: PartEntry, cls: type[Preparation], arguments: Sequence[str]) -> Any:
    """The options as a configuration's table; raises ``UsageError`` for what is no option of this task."""
    from curvlab.config.tree import Node, Origin, node_of

    settings, table, rest = _options(cls), {}, list(arguments)
    while rest:
        word, equals, text = rest.pop(0).partition("=")
        if word not in settings:
            known = advice(word, [*settings, "--to"], "Options")
            what = "has no option" if word.startswith("-") else "takes options by name, not"
            raise UsageError(f'preparing "{entry.name}" {what} {word}\n  {known}')
        setting = settings[word]
        if setting.name in table:
            raise UsageError(f"{word} is given twice")
        if not equals:
            if not rest or rest[0].partition("=")[0] in {*settings, "--to"}:
                raise UsageError(f"{word} needs a value, {_words(setting)}")
            text = rest.pop(0)
        origin = Origin("command line", path=word, rank=0)
        table[setting.name] = node_of(_value(setting, text), lambda path, origin=origin: origin)  # type: ignore[misc]
    for option, setting in settings.items():
        if setting.required and setting.name not in table:
            raise UsageError(f'preparing "{entry.name}" needs {option} VALUE, {_words(setting)}')
    return Node(table, Origin("command line", rank=0))


def _options(cls: type[Preparation]) -> dict[str, Setting]:
    from curvlab.config.schema import settings_of

    return {f"--{name.replace('_', '-')}": setting for name, setting in settings_of(cls).items()}


def _value(setting: Setting, text: str) -> Any:
    """A TOML value, else a string; always a string where nothing else can be meant."""
    from curvlab.config.layers import value_of
    from curvlab.config.schema import members

    texts = {m for m in members(setting.annotation) if m is not type(None)} == {str}
    return text if texts else value_of(text)


def _help(entry: PartEntry, cls: type[Preparation]) -> str:
    """What the preparation makes, and its options with type and default."""
    from curvlab.config.values import as_plain

    rows = [("--to DIR", "the folder to make", "")]
    for option, setting in _options(cls).items():
        default = "" if setting.required or setting.default is None else str(as_plain(setting.default))
        rows.append((f"{option} VALUE", _words(setting), f" [default: {default}]" if default else ""))
    width = max(len(option) for option, _, _ in rows)
    below = " " * (width + 4)
    lines = [fitted(f"  {option.ljust(width)}  {what}{default}", below) for option, what, default in rows]
    paragraphs = (inspect.getdoc(cls) or "").split("\n\n")
    about = "\n\n".join(map(fitted, paragraphs))
    return "\n".join(
        [f"Usage: curvlab tasks prepare {entry.name} --to DIR [--OPTION VALUE]…", "", about, "", *lines]
    )


def _words(setting: Setting) -> str:
    from curvlab.config.schema import words

    return words(setting.annotation)
