"""What the tutorial ends with is what its commands make: its commands are run by ``tests/test_docs.py``."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curvlab.cli.app import app
from curvlab.testing.conformance import StructureConformance

EXAMPLE = Path(__file__).resolve().parents[2] / "docs" / "examples" / "curvlab-hello"

#: what the tutorial has one write, and the two places that describe it
WRITTEN = {"curvlab_hello/hello.py", "tests/test_hello.py", "README.md"}
DESCRIBED = {"pyproject.toml", "curvlab_hello/__init__.py"}


def files(folder: Path) -> dict[str, str]:
    """The text of every file of a plugin but what running it leaves behind."""
    left = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", "runs"}
    found = {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()}
    kept = [
        p
        for p in sorted(found)
        if not left & set(p.parts) and not any(x.endswith(".egg-info") for x in p.parts)
    ]
    return {p.as_posix(): (folder / p).read_text() for p in kept}


def test_the_example_is_what_the_command_writes_but_for_what_the_tutorial_changes(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["plugins", "new", "structure", "hello", "--dir", str(tmp_path / "new")])
    assert done.exit_code == 0, done.output
    ours, theirs = files(EXAMPLE), files(tmp_path / "new")
    ours["LICENSE"] = theirs["LICENSE"]  # the year is that of the day
    assert ours.keys() == theirs.keys()
    for name in DESCRIBED:
        mine, others = ours[name].splitlines(), theirs[name].splitlines()
        assert sum(a != b for a, b in zip(mine, others, strict=True)) == 1, name
    same = ours.keys() - WRITTEN - DESCRIBED
    assert {n for n in same if ours[n] != theirs[n]} == set()


def test_two_methods_are_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fast products the module still has all that it owes."""
    tree = ast.parse((EXAMPLE / "curvlab_hello" / "hello.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            kept = [n for n in node.body if getattr(n, "name", "dense") in ("dense", "member")]
            assert sum(isinstance(n, ast.FunctionDef) for n in kept) == 1
            node.body = kept
    (tmp_path / "slow_hello.py").write_text(ast.unparse(tree))
    monkeypatch.syspath_prepend(str(tmp_path))
    suite = StructureConformance.of(importlib.import_module("slow_hello").Hello())
    results = {
        c.name: suite.outcome(c).result for c in suite.checks() if c.name in ("products", "projection")
    }
    assert results == {"products": "pass", "projection": "pass"}
