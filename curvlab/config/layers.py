"""Files, ``extends``, Python data and ``--set``, merged into one tree.  Imports neither parts nor torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from pathlib import Path as FilePath
from typing import Any

from curvlab.config.limits import DEEPEST, too_deep
from curvlab.config.locator import Path
from curvlab.config.merge import merge
from curvlab.config.source import Source
from curvlab.config.toml_reader import NotToml, read_toml
from curvlab.config.tree import DEFAULT, Node, Origin, describe, dotted, node_of, plain
from curvlab.errors import LONGEST_KEY, ConfigError, Fault, UsageError, shortened

EXTENDS = "extends"

#: what a configuration says when it says nothing
DEFAULTS: Mapping[str, Any] = {"precision": {"use": "float32"}, "report": {"use": "console"}}


@dataclass(frozen=True)
class Layers:
    """The merged configuration: every value with its origin; ``given`` is what the user wrote, as TOML."""

    tree: Node
    given: str

    @property
    def data(self) -> dict[str, Any]:
        """The merged values as plain data."""
        values: dict[str, Any] = plain(self.tree)
        return values


def load(
    paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
    overrides: Sequence[str] = (),
    data: Mapping[str, Any] | None = None,
) -> Layers:
    """Merge files (later override earlier), then ``data``, then overrides ``a.b=value``.

    Raises ``ConfigError`` with every unreadable file, TOML error and cycle of ``extends``;
    ``UsageError`` for an override that is not ``key=value``.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = (paths,)
    work = _Reading()
    layers = [layer for path in paths for layer in work.file(FilePath(path))]
    if data is not None:
        layers += work.data(data)
    if overrides:
        layers.append(work.overrides(overrides))
    if work.faults:
        raise ConfigError(*work.faults)
    files = [layer.origin for layer in layers if layer.origin.file in work.texts]
    user = Node({}, files[-1] if files else Origin("configuration", rank=0))
    for layer in layers:
        user = merge(user, layer, work.faults)
    tree = Node(merge(node_of(DEFAULTS, lambda path: DEFAULT), user, work.faults).table, user.origin)
    if work.faults:
        raise ConfigError(*work.faults)
    return Layers(tree, _given(work, plain(user), bool(overrides)))


@dataclass
class _Reading:
    """What reading has found so far."""

    faults: list[Fault] = field(default_factory=list)
    texts: dict[str, str] = field(default_factory=dict)
    rank: int = 0
    open_files: tuple[FilePath, ...] = ()

    def file(self, path: FilePath, named_by: Node | None = None) -> list[Node]:
        """The layers of a file: those it extends, then its own."""
        resolved = path.resolve()
        if resolved in self.open_files:
            chain = " → ".join(
                p.name for p in (*self.open_files[self.open_files.index(resolved) :], resolved)
            )
            self._report(
                named_by, f"the files extend each other in a circle: {chain}", "remove one extends", str(path)
            )
            return []
        text = self._read(path, named_by)
        if text is None:
            return []
        try:
            data = read_toml(text)
        except NotToml as err:
            line = text.split("\n")[err.line - 1].rstrip("\r")
            self.faults.append(Fault(err.message, "", str(path), err.line, err.column, err.hint, line))
            return []
        self.texts[str(path)] = text
        source = Source(str(path), text, str(path))
        self.open_files = (*self.open_files, resolved)
        below = self._extended(source.tree(data), path.parent)
        self.open_files = self.open_files[:-1]
        self.rank += 1
        return [*below, source.tree(data, self.rank).without(EXTENDS)]

    def data(self, data: Mapping[str, Any]) -> list[Node]:
        """The layers of a Python mapping; its ``extends`` is relative to the working directory."""
        deep = too_deep(data)
        if deep is not None:
            what = f"nested more than {DEEPEST} levels deep"
            self.faults.append(Fault(what, dotted(deep), "python", hint="use a flatter mapping"))
            return []
        below = self._extended(node_of(data, lambda p: Origin("python", dotted(p))), FilePath())
        self.rank += 1
        rank = self.rank
        return [*below, node_of(data, lambda p: Origin("python", dotted(p), rank=rank)).without(EXTENDS)]

    def overrides(self, overrides: Sequence[str]) -> Node:
        """One layer of all ``--set key=value``, the later of two for the same key."""
        self.rank += 1
        layer = Node({}, Origin("--set", rank=self.rank))
        for text in overrides:
            keys, value = _assignment(text)
            origin = Origin("--set", dotted(keys), file="--set", source=text, rank=self.rank)
            node = node_of(value, lambda path, origin=origin: origin)  # type: ignore[misc]
            for key in reversed(keys):
                node = Node({str(key): node}, origin)
            layer = merge(layer, node, self.faults)
        return layer

    def _extended(self, tree: Node, folder: FilePath) -> list[Node]:
        if EXTENDS not in tree.table:
            return []
        named = tree.table[EXTENDS]
        entries = named.value if isinstance(named.value, list) else [named]
        layers = []
        for entry in entries:
            if isinstance(entry.value, str):
                layers += self.file(folder / entry.value, entry)
            else:
                self.faults.append(
                    entry.fault(
                        f"expected file names, got {describe(plain(entry))}",
                        'for example extends = ["base.toml"]',
                    )
                )
        return layers

    def _read(self, path: FilePath, named_by: Node | None) -> str | None:
        try:
            return path.read_bytes().decode("utf-8-sig")
        except FileNotFoundError:
            self._report(named_by, "no such file", f"looked for {path.resolve()}", str(path))
        except IsADirectoryError:
            self._report(named_by, "expected a TOML file, got a folder", "name a file in it", str(path))
        except OSError as err:
            self._report(
                named_by, f"the file cannot be read: {err.strerror}", "check its permissions", str(path)
            )
        except UnicodeDecodeError as err:
            before = path.read_bytes()[: err.start]
            line = before.count(b"\n") + 1
            column = len(before) - before.rfind(b"\n")
            self.faults.append(
                Fault(
                    "the file is not UTF-8, and TOML files must be",
                    "",
                    str(path),
                    line,
                    column,
                    "save the file as UTF-8",
                )
            )
        return None

    def _report(self, named_by: Node | None, message: str, hint: str, file: str) -> None:
        if named_by is None:
            self.faults.append(Fault(message, file=file, hint=hint))
        else:
            self.faults.append(named_by.fault(f'"{file}": {message}', hint))


def _assignment(text: str) -> tuple[Path, Any]:
    """``a.b=value``: keys, and the value as TOML if it is that, else as a string."""
    key, equals, value = text.partition("=")
    keys = keys_of(key.strip())
    if not equals or not keys:
        raise UsageError(f"--set {shortened(text)}: expected key=value, as in --set method.lr=0.01")
    return keys, value_of(value)


def value_of(text: str) -> Any:
    """What is written on a command line: the TOML value if it is one, else the text itself.

    Raises ``UsageError`` for a value that is nested too deeply or has too many digits.
    """
    try:
        parsed = read_toml(f"value = {text}")
    except NotToml as err:
        if err.beyond:
            raise UsageError(f"the value {shortened(text, LONGEST_KEY)}: {err.message}; {err.hint}") from err
        return text
    # a value with a newline could smuggle in more keys; then it is a string
    return parsed["value"] if len(parsed) == 1 else text


def keys_of(text: str) -> Path:
    """The keys of a dotted key as TOML has it; none for any other text.

    Raises ``UsageError`` for one that is nested too deeply.
    """
    try:
        tree: Any = read_toml(f"{text} = 0")
    except NotToml as err:
        if err.beyond:
            raise UsageError(f"--set {shortened(text, LONGEST_KEY)}: {err.message}; {err.hint}") from err
        return ()
    keys = []
    while isinstance(tree, dict):
        if len(tree) != 1:
            return ()
        ((key, tree),) = tree.items()
        keys.append(key)
    return tuple(keys)


def _given(work: _Reading, user: Mapping[str, Any], overridden: bool) -> str:
    """One file as it stands; anything more as the merged values, with a comment that says of what."""
    if len(work.texts) == 1 and not overridden and work.rank == 1:
        return next(iter(work.texts.values()))
    import tomli_w

    sources: Iterable[str] = [
        *work.texts,
        *(["values given in Python or by --set"] if overridden or not work.texts else []),
    ]
    return f"# merged from {', '.join(sources)}\n" + tomli_w.dumps(_writable(user))


def _writable(value: Any) -> Any:
    """Data as TOML can hold it: a part that was given built, from Python, as its ``repr``."""
    if isinstance(value, Mapping):
        return {key: _writable(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_writable(v) for v in value]
    return value if isinstance(value, (bool, int, float, str, date, time)) else repr(value)
