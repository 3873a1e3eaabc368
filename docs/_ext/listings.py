"""What pages show of the code, as Markdown: methods, parts with their settings, protocols, records, commands.

Everything comes from the registry, from dataclasses and from docstrings, so a page cannot fall behind them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import tomli_w

import curvlab.config
from curvlab.config.field_notes import field_notes
from curvlab.config.knobs import MethodFile, read_method
from curvlab.config.schema import REQUIRED, settings_of, words
from curvlab.config.tree import plain
from curvlab.config.values import as_plain
from curvlab.engine.method import found_at
from curvlab.protocols.structure import Gram, Group
from curvlab.registry.imports import import_object, part_class
from curvlab.registry.loader import installed
from curvlab.registry.records import PartEntry

PLUGINS = sorted(folder.name for folder in (Path(__file__).parents[2] / "plugins").iterdir())

#: distributions whose parts the pages list: ours, whatever else is installed
OURS = re.compile(rf"curvlab(-({'|'.join(PLUGINS)}))?")

#: a value in words that say which values there are
QUOTED = re.compile(r'("[^"]+")')

#: a docstring's pointers into notes that are not part of the project
NOTES = re.compile(r"[;:]? ?\bspecs:? [A-Z]?\d+(\.\d+)?( and \d+)?")


def lead(name: str) -> str:
    """A method in one line, who brings it and what it asks of a step."""
    entry = _file(name).entry
    return f"*{_sentence(entry.summary)}* From `{entry.distribution}`; evaluates: {entry.needs}."


def knobs(name: str) -> str:
    """A method's knobs as a table."""
    file = _file(name)
    method = _built(name)
    rows = []
    for knob in file.knobs.values():
        default = file.default(knob)
        if default is None:  # the file leaves it to the part
            default = as_plain(reduce(getattr, knob.paths[0], method))
        shown, places = _value(default), method.knobs.get(knob.name, ())
        inner = next((as_plain(found_at(method, p)) for p in places if p[0] == "fallback"), default)
        if inner != default:  # given, the knob sets both; left out, each keeps its own
            shown = f"{_toml(default)} (of the fallback: {_toml(inner)})"
        rows.append((f"`{knob.name}`", shown, ", ".join(f"`{p}`" for p in knob.written()), knob.help))
    return table(("knob", "default", "sets, under `[method]`", "what it is"), rows)


def composition(name: str) -> str:
    """A method's whole composition as TOML."""
    text = tomli_w.dumps({"method": plain(_file(name).composition)}).strip()
    return f"```toml\n{text}\n```"


def reference(name: str) -> str:
    """The text that defines a method."""
    return f"{_sentence(_file(name).entry.reference)}"


def methods() -> str:
    """All methods, linked to their pages."""
    rows = [
        (f"[`{e.name}`]({e.name}.md)", e.summary, f"`{e.distribution}`")
        for e in installed().method_entries()
        if OURS.fullmatch(e.distribution)
    ]
    return table(("method", "what it is", "distribution"), rows)


def parts(kind: str) -> str:
    """Every part of a kind: its docstring and its settings."""
    return "\n\n".join(_part(e) for e in installed().parts(kind) if OURS.fullmatch(e.distribution))


def names(kind: str) -> str:
    """The parts of a kind as a table of one line each, linked to the reference."""
    rows = [
        (f"[`{e.name}`](../reference/{kind}.md#{e.name})", e.summary, f"`{e.distribution}`")
        for e in installed().parts(kind)
        if OURS.fullmatch(e.distribution)
    ]
    return table(("`use =`", "what it is", "distribution"), rows)


def protocol(path: str) -> str:
    """A protocol: its docstring, what an implementation owes, and what it may do besides."""
    cls = import_object(path)
    owed, free = [], []
    for name, member in _members(cls):
        abstract = getattr(member, "__isabstractmethod__", False)
        (owed if abstract else free).append(f"```text\n{_signature(name, member)}\n```\n\n{_doc(member)}")
    text = [f"`{path.replace(':', '.')}`", _doc(cls)]
    text += ["**Owes**", *owed] if owed else []
    text += ["**May do besides**" if owed else "**May do**", *free] if free else []
    settings = _attributes(cls)
    text += [settings] if settings else []
    return "\n\n".join(text)


def record(path: str) -> str:
    """A record: its docstring and its fields."""
    cls = import_object(path)
    notes = field_notes(cls)
    rows = [
        (f"`{f.name}`", f"`{_cell(str(f.type))}`", notes.get(f.name, ""))
        for f in dataclasses.fields(cls)
        if not f.name.startswith("_")
    ]
    return f"`{path.replace(':', '.')}`\n\n{_doc(cls)}\n\n{_with_notes('field', rows)}"


def call(path: str) -> str:
    """A function: its signature and docstring."""
    found = import_object(path)
    name = path.replace(":", ".")
    return f"```text\n{_signature(name, found)}\n```\n\n{_doc(found)}"


def source(path: str) -> str:
    """A function as it is written, without its docstring."""
    lines = textwrap.dedent(inspect.getsource(import_object(path))).splitlines()
    (function,) = ast.parse("\n".join(lines)).body
    assert isinstance(function, ast.FunctionDef)
    docstring = function.body[0]
    kept = lines[: docstring.lineno - 1] + lines[docstring.end_lineno :]
    return "```python\n" + "\n".join(kept) + "\n```"


def hooks() -> str:
    """The hooks that a plugin may implement."""
    from curvlab.registry import hookspecs

    found = [f for n, f in vars(hookspecs).items() if n.startswith("curvlab_")]
    return "\n\n".join(f"```text\n{_signature(f.__name__, f)}\n```\n\n{_doc(f)}" for f in found)


def errors() -> str:
    """The tree of errors and exit codes."""
    from curvlab import errors as module

    _, tree, notes = (inspect.getdoc(module) or "").replace("``", "`").split("\n\n", 2)
    # as narrow as its longest name allows: a page is narrower than a docstring
    lines = [re.sub(r" {4}(?=[\d/]+  )", "", line.removeprefix("    ")) for line in tree.splitlines()]
    text = "\n".join(lines).replace("`", "")
    return f"```text\n{text}\n```\n\n{notes}"


def commands() -> str:
    """What ``--help`` prints of every command."""
    from typer.testing import CliRunner

    from curvlab.cli.app import app

    def pages(command: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, inner in sorted(getattr(command, "commands", {}).items()):
            if not inner.hidden:
                yield from pages(inner, (*path, name))

    import typer

    text = []
    for path in pages(typer.main.get_command(app), ()):
        told = CliRunner().invoke(app, [*path, "--help"], prog_name="curvlab", env={"COLUMNS": "100"})
        text.append(f"## curvlab {' '.join(path)}".rstrip() + f"\n\n```text\n{told.output.strip()}\n```")
    return "\n\n".join(text)


#: the kinds of change notes, in the order in which a user reads them
KINDS = {"removed": "Removed", "changed": "Changed", "added": "Added", "fixed": "Fixed"}


def changes() -> str:
    """The change notes since the last release, by kind; the latest work first."""
    found: dict[str, list[tuple[int, str, str]]] = {kind: [] for kind in KINDS}
    for note in (Path(__file__).parents[2] / "changelog.d").glob("*.md"):
        issue, *words = note.stem.split(".")
        if note.name != "README.md":
            kind = next(word for word in words if word in KINDS)
            text = note.read_text(encoding="utf-8").strip()
            found[kind].append((-int(issue), note.name, textwrap.indent(text, "  ").strip()))
    return "\n\n".join(
        "\n".join([f"## {KINDS[kind]}", "", *(f"* {text}" for _, _, text in sorted(notes))])
        for kind, notes in found.items()
        if notes
    )


KNOWN: Mapping[str, Callable[..., str]] = {
    f.__name__: f
    for f in (
        lead,
        knobs,
        composition,
        reference,
        methods,
        parts,
        names,
        protocol,
        record,
        call,
        source,
        hooks,
        errors,
        commands,
        changes,
    )
}


def _file(name: str) -> MethodFile:
    return read_method(installed().method(name))


def _built(name: str) -> Any:
    data = {"task": {"use": "digits"}, "method": {"use": name}, "run": {"steps": 1}}
    return curvlab.config.build(curvlab.config.load(data=data), installed()).method


def _part(entry: PartEntry) -> str:
    cls = part_class(entry)
    text = [f"## {entry.name}", f"`{entry.factory.replace(':', '.')}` · `{entry.distribution}`", _doc(cls)]
    if entry.kind == "structure":
        good_for = [c.__name__ for c in (Gram, Group) if issubclass(cls, c)]
        text.append(f"Capabilities: {', '.join(good_for)}.")
    notes = field_notes(cls)
    rows = [
        (f"`{s.name}`", QUOTED.sub(r"`\1`", words(s.annotation)), _default(s.default), notes.get(s.name, ""))
        for s in settings_of(cls).values()
        if s.name not in entry.preset
    ]
    filled = 4 if any(row[3] for row in rows) else 3
    head = ("setting", "type", "default", "what it is")[:filled]
    text.append(table(head, [row[:filled] for row in rows]) if rows else "No settings.")
    return "\n\n".join(text)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(_cell(c) for c in line)} |" for line in lines)


def _default(value: Any) -> str:
    if value is REQUIRED:
        return "required"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        given = ", ".join(f"{f.name} = {getattr(value, f.name)!r}" for f in dataclasses.fields(value))
        return f"`{type(value).__name__}({given})`"
    return _value(as_plain(value))


def _value(value: Any) -> str:
    """A plain value as TOML writes it."""
    if value is None:
        return "none"
    return f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"use"}:
        return _toml(value["use"])
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_toml(v) for v in value)}]"
    return tomli_w.dumps({"x": value}).partition("=")[2].strip()


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class, in the order in which they are written."""
    for name, member in vars(cls).items():
        public = not name.startswith("_") or name in ("__call__", "__matmul__")
        if public and (inspect.isfunction(member) or isinstance(member, property)):
            yield name, member


def _attributes(cls: type) -> str:
    notes = field_notes(cls)
    rows = [
        (f"`{n}`", f"`{_cell(str(t))}`", notes.get(n, ""))
        for n, t in vars(cls).get("__annotations__", {}).items()
    ]
    return _with_notes("attribute", rows) if rows else ""


def _with_notes(what: str, rows: list[tuple[str, str, str]]) -> str:
    """Names, types and notes, these only if there are any."""
    columns = 3 if any(note for _, _, note in rows) else 2
    return table((what, "type", "what it is")[:columns], [row[:columns] for row in rows])


def _signature(name: str, member: Any) -> str:
    if isinstance(member, property):
        return f"{name}: {inspect.signature(member.fget).return_annotation}"  # type: ignore[arg-type]
    signature = inspect.signature(member)
    given = [_parameter(p) for p in signature.parameters.values()]
    kinds = [p.kind for p in signature.parameters.values()]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        given.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    given = [g for g in given if g != "self"]
    line = f"{name}({', '.join(given)}) -> {signature.return_annotation}"
    if len(line) <= 88:
        return line
    return f"{name}(\n    " + ",\n    ".join(given) + f",\n) -> {signature.return_annotation}"


def _parameter(p: inspect.Parameter) -> str:
    text = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "") + p.name  # type: ignore[call-overload]
    text += "" if p.annotation is p.empty else f": {p.annotation}"
    return text if p.default is p.empty else f"{text} = {p.default!r}"


def _doc(thing: Any) -> str:
    target = thing.fget if isinstance(thing, property) else thing
    text = NOTES.sub("", inspect.cleandoc(target.__doc__ or ""))
    return text.replace("$", r"\$")


def _cell(text: str) -> str:
    return re.sub(r"(?<!\\)\|", r"\\|", text.replace("\n", " "))


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith(".") else f"{text}."
