"""Who may import whom, and how long a module may be: the rooms of the house, read from the syntax tree.

Imports inside functions and under ``TYPE_CHECKING`` count: hiding an arrow does not turn it round.
There is no exception list.  A room missing from the table fails the first test, so a new one is
put on its floor by whoever builds it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.source_tree

ROOT = Path(__file__).parent.parent

FLOOR_1 = frozenset({"errors"})
FLOOR_2 = FLOOR_1 | {"linalg"}
FLOOR_3 = FLOOR_2 | {"protocols", "files"}
FLOOR_5 = FLOOR_3 | {"model", "objectives"}
FLOOR_6 = FLOOR_5 | {"engine"}

#: room of the core -> rooms it may import from, beside itself
MAY_IMPORT: Mapping[str, frozenset[str]] = {
    "errors": frozenset(),
    "files": FLOOR_1,
    "linalg": FLOOR_1,
    "protocols": FLOOR_2,
    "model": FLOOR_3,
    "parts": FLOOR_3,
    "structures": FLOOR_3,
    "precision": FLOOR_3,
    "reporting": FLOOR_3,
    "plotting": FLOOR_3 | {"reporting"},
    "pages": frozenset(),
    "comparing": FLOOR_1 | {"files", "reporting", "pages"},
    "scaffold": frozenset({"errors", "registry"}),
    "bench": frozenset({"errors", "pages"}),
    "registry": frozenset({"protocols", "errors"}),
    "objectives": FLOOR_3 | {"model"},
    "tasks": FLOOR_5,
    "pde": FLOOR_5 | {"registry"},
    "engine": FLOOR_5,
    "config": FLOOR_6 | {"registry"},
    "trials": FLOOR_6 | {"registry", "config", "reporting", "comparing"},
    "sweeps": FLOOR_6 | {"registry", "config", "reporting", "trials"},
    "races": FLOOR_6 | {"registry", "config", "reporting", "comparing", "pages", "trials"},
    "testing": FLOOR_6 | {"registry", "structures"},
    "default_plugin": frozenset({"registry"}),
    "api": FLOOR_6 | {"registry", "config", "reporting"},
    "__init__": frozenset({"errors", "registry", "api", "engine", "objectives"}),
    "cli": FLOOR_6
    | {"registry", "config", "reporting", "plotting", "comparing", "api", "scaffold", "bench", "testing"}
    | {"trials", "sweeps", "races", "__init__"},
    "__main__": frozenset({"cli"}),
}

#: names of the package itself that stand on no floor: ``curvlab.__version__`` is a constant
FACTS = frozenset({"__version__"})

#: what a plugin may take from the core; ``hookimpl`` is a name of the package itself
PLUGIN_MAY_IMPORT = FLOOR_5 | FACTS | {"pde", "precision", "structures", "tasks", "hookimpl"}

#: entered on every ``--help`` and listing, so what they import when they are imported is torch-free
ENTRANCES = ("curvlab", "curvlab.cli.app", "curvlab.registry", "curvlab.default_plugin")

#: most lines of a module, and of a function beside its signature and its docstring
MODULE, FUNCTION = 400, 60

NO_ROOM_NAMES = {"utils", "util", "misc", "helpers", "helper", "common"}


@dataclass(frozen=True)
class Arrow:
    """One import: from a module, to a dotted name, at a line; ``eager`` if importing the module runs it."""

    source: str
    target: str
    line: int
    eager: bool
    typing_only: bool


def packages() -> dict[str, Path]:
    """Every package of the repository by name: the core and the plugins."""
    plugins = sorted(p for p in ROOT.glob("plugins/*/curvlab_*") if (p / "__init__.py").exists())
    return {"curvlab": ROOT / "curvlab", **{p.name: p for p in plugins}}


@lru_cache(maxsize=1)
def modules() -> dict[str, Path]:
    """Every module by dotted name; a package by its own."""
    found = {}
    for name, folder in packages().items():
        for file in sorted(folder.rglob("*.py")):
            parts = (name, *file.relative_to(folder).with_suffix("").parts)
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


@lru_cache(maxsize=1)
def arrows() -> tuple[Arrow, ...]:
    """Every import statement of the repository's packages."""
    return tuple(arrow for name, file in modules().items() for arrow in _arrows_of(name, file))


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def _arrows_of(name: str, file: Path) -> Iterator[Arrow]:
    for node, eager, typing_only in _walk(_tree(file), True, False):
        for target in _targets(node, name, file.name == "__init__.py"):
            yield Arrow(name, target, getattr(node, "lineno", 0), eager and not typing_only, typing_only)


def _walk(node: ast.AST, eager: bool, typing_only: bool) -> Iterator[tuple[ast.AST, bool, bool]]:
    yield node, eager, typing_only
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
        for child in node.body:
            yield from _walk(child, eager, True)
        for child in node.orelse:
            yield from _walk(child, eager, typing_only)
        return
    inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, eager and not inside, typing_only)


def _targets(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            home = module.split(".")
            home = home[: len(home) - node.level + is_package]
            base = ".".join([*home, *([node.module] if node.module else [])])
        yield from (f"{base}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "curvlab":
        yield f"curvlab.{node.attr}"  # ``import curvlab`` and then a name of it


def module_of(target: str) -> str | None:
    """The module of ours that a dotted name lies in, or ``None`` for a foreign one."""
    while target and target not in modules():
        target = target.rpartition(".")[0]
    return target or None


def room(dotted: str) -> str:
    """``linalg`` of ``curvlab.linalg.vectors``; ``__init__`` of ``curvlab``."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def where(arrow: Arrow) -> str:
    return f"{modules()[arrow.source].relative_to(ROOT)}:{arrow.line} imports {arrow.target}"


def core_arrows() -> list[Arrow]:
    return [a for a in arrows() if a.source.split(".")[0] == "curvlab"]


def test_every_room_has_its_floor() -> None:
    rooms = {room(name) for name in modules() if name.split(".")[0] == "curvlab"}
    assert rooms <= set(MAY_IMPORT), f"rooms without a floor: {sorted(rooms - set(MAY_IMPORT))}"


def test_rooms_of_the_core_import_from_lower_floors_only() -> None:
    wrong = []
    for arrow in core_arrows():
        if arrow.target.split(".")[0] != "curvlab":
            continue
        mine, theirs = room(arrow.source), room(arrow.target)
        if (
            theirs not in MAY_IMPORT and theirs not in FACTS
        ):  # a name that the package offers, ``curvlab.train``
            theirs = "__init__"
        if theirs != mine and theirs not in MAY_IMPORT[mine] | FACTS:
            wrong.append(f"{where(arrow)}: {mine} may import {sorted(MAY_IMPORT[mine])}")
    assert not wrong, "\n" + "\n".join(wrong)


def test_the_core_imports_no_plugin() -> None:
    wrong = [where(a) for a in core_arrows() if a.target.startswith("curvlab_")]
    assert not wrong, "\n" + "\n".join(wrong)


def test_plugins_stand_on_the_protocols_and_on_no_other_plugin() -> None:
    wrong = []
    for arrow in arrows():
        package = arrow.source.split(".")[0]
        top = arrow.target.split(".")[0]
        if package == "curvlab" or top == package:
            continue
        foreign_plugin = top.startswith("curvlab_")
        forbidden_room = (
            top == "curvlab" and "." in arrow.target and room(arrow.target) not in PLUGIN_MAY_IMPORT
        )
        if foreign_plugin or forbidden_room:
            wrong.append(where(arrow))
    assert not wrong, f"\nplugins may import curvlab.{sorted(PLUGIN_MAY_IMPORT)}:\n" + "\n".join(wrong)


def test_no_module_imports_itself_through_others() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for arrow in arrows():
        target = None if room(arrow.target) in FACTS else module_of(arrow.target)
        if target and not arrow.typing_only and target != arrow.source:
            graph[arrow.source].add(target)
    circle = _circle(graph)
    assert circle is None, " -> ".join(circle or ())


def _circle(graph: Mapping[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str] | None:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return None
        for target in sorted(graph[node]):
            found = visit(target, [*path, node])
            if found:
                return found
        done.add(node)
        return None

    for start in sorted(graph):
        found = visit(start, [])
        if found:
            return found
    return None


def test_a_circle_is_found_where_there_is_one() -> None:
    assert _circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert _circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None


@pytest.mark.parametrize("entrance", [*ENTRANCES, *(p for p in packages() if p != "curvlab")])
def test_listings_do_not_import_torch(entrance: str) -> None:
    """Follows what runs on import, the enclosing packages' ``__init__`` included."""
    assert entrance in modules(), f"{entrance} does not exist"
    waiting, seen = [entrance], {entrance: entrance}
    while waiting:
        name = waiting.pop()
        package = name.rpartition(".")[0]
        targets = [package] if package else []
        targets += [a.target for a in arrows() if a.source == name and a.eager]
        for target in targets:
            assert target.split(".")[0] != "torch", f"{seen[name]} imports torch"
            mine = module_of(target)
            if mine and mine not in seen:
                seen[mine] = f"{seen[name]} -> {mine}"
                waiting.append(mine)


def test_modules_are_short() -> None:
    lengths = {name: len(file.read_text(encoding="utf-8").splitlines()) for name, file in modules().items()}
    long = {name: length for name, length in lengths.items() if length > MODULE}
    assert not long, f"more than {MODULE} lines, split at a noun of their own: {long}"


def test_functions_are_short() -> None:
    long = [
        f"{file.relative_to(ROOT)}:{node.lineno} {node.name}: {length} lines"
        for file in modules().values()
        for node in ast.walk(_tree(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (length := _length(node)) > FUNCTION
    ]
    assert not long, f"more than {FUNCTION} lines:\n" + "\n".join(long)


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from the first statement to the last, its docstring left out."""
    documented = ast.get_docstring(function, clean=False) is not None
    body = function.body[documented:]
    return (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_lengths_of_functions_are_those_of_their_statements() -> None:
    source = 'def f(\n    a,\n):\n    """One.\n\n    Two."""\n    b = a\n\n    return b\n'
    source += 'def g():\n    """None."""\n'
    f, g = ast.parse(source).body
    assert isinstance(f, ast.FunctionDef)
    assert isinstance(g, ast.FunctionDef)
    assert (_length(f), _length(g)) == (3, 0)


def test_no_file_is_named_after_nothing() -> None:
    wrong = [str(file) for file in modules().values() if file.stem in NO_ROOM_NAMES]
    assert not wrong, wrong
