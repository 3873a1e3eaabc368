"""``nox -s lint`` finds what it is there to find: a planted fault of each rule, and of our dictionary."""

from __future__ import annotations

import importlib.util
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.source_tree

ROOT = Path(__file__).parent.parent
LONG = " ".join(["word"] * 41)
MARKED = {
    "# A page of nobody": "nobody",
    "The solver is told which pairs to keep.": "is told",
    "A rate is chosen. Of these the best one counts.": "begins with",
    "Damping is the only\nthing here.": "thing",
    f"Short. {LONG.capitalize()}.": "41 words",
    f"* {LONG}": "41 words",
}
UNMARKED = (
    "Something bearing a thing's name: `nobody`, $dear$ <!-- thing --> and [a page](thing.md).",
    "```\nnobody\n```",
    "| thing |\n|---|",
    f"{LONG[:-5]}; {LONG[:-5]}.",
    "One item of a list\n" + "* five words of an item\n" * 20,
)


@cache
def prose() -> ModuleType:
    """``.ci/prose.py``."""
    spec = importlib.util.spec_from_file_location("prose", ROOT / ".ci" / "prose.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["prose"] = module  # dataclasses look for the module of a class
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", MARKED)
def test_a_page_with_a_fault_is_refused_at_its_line(page: str, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(f"First.\n\n{page}\n", encoding="utf-8")
    (found,) = prose().faults_of(file, file)
    assert MARKED[page] in found.what
    assert found.line == 3


@pytest.mark.parametrize("page", UNMARKED)
def test_code_tables_and_short_clauses_are_no_fault(page: str, tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    file.write_text(page.replace("a thing's", "a part's"), encoding="utf-8")
    assert not list(prose().faults_of(file, file))


def test_docstrings_errors_and_warnings_are_read_and_code_is_not(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    lines = (
        '"""A module.',
        "",
        "The dear one.",
        "",
        "    nobody = 1  # set apart",
        '"""',
        "def nobody(thing):",
        '    raise ConfigError(f"{thing} is a" " thing", path=1)',
        'fault("whoever")',
        'print("whoever")',
    )
    file.write_text("\n".join(lines), encoding="utf-8")
    found = [(fault.line, fault.what.split("”")[0]) for fault in prose().faults_of(file, file)]
    assert sorted(found) == [(3, "“dear"), (8, "“thing"), (9, "“whoever")]


def test_the_command_prints_faults_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "page.md"
    for text, status in (("A page.", 0), ("A page for everybody.", 1)):
        file.write_text(text, encoding="utf-8")
        assert prose().main([str(file)]) == status
    assert capsys.readouterr().out.startswith(f"{file}:1: “everybody”")


def test_every_kind_of_text_of_the_tree_is_read() -> None:
    found = {str(path) for path in prose().tracked() if prose().READ.fullmatch(str(path))}
    assert found >= {
        *("README.md", "docs/index.md", "plugins/kfac/README.md", "changelog.d/README.md"),
        *("curvlab/errors.py", "plugins/kfac/curvlab_kfac/__init__.py", "examples/studies/gpu.py"),
    }


def test_misspelled_and_british_words_are_refused_under_our_settings(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    wrong = ["recieve", "colour", "linearise", "factorisation"]  # codespell:ignore
    file.write_text(" ".join([*wrong, "optimizer", "catalogue"]), encoding="utf-8")
    assert [line.split()[1] for line in prose().misspelled([file])] == wrong
