"""What a new plugin consists of, and where it is written."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import tomli

from curvlab.errors import UsageError
from curvlab.registry import API_VERSION
from curvlab.registry.kinds import KINDS, METHOD
from curvlab.scaffold.project import project, write
from tests.scaffold.generated import LINES, ROOT, Generated, generate, name_for


@pytest.mark.parametrize("kind", KINDS)
def test_a_project_has_all_that_a_distribution_needs(kind: str) -> None:
    made = project(kind, name_for(kind), version="0.1.0", year=2026)
    package, module = made.names.package, made.names.module
    assert set(made.files) >= {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "example.toml",
        "asv.conf.json",
        f"{package}/__init__.py",
        f"{package}/py.typed",
        f"tests/test_{module}.py",
        f"benchmarks/bench_{module}.py",
        made.edit,
    }
    assert not [text for text in made.files.values() if "$" in text]
    assert not [
        path for path in made.files if any(word in path for word in ("PACKAGE", "MODULE", "NAME", "TESTS"))
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_its_metadata_say_what_it_is(kind: str) -> None:
    made = project(kind, name_for(kind), version="0.7.2", year=2026)
    settings = tomli.loads(made.files["pyproject.toml"])
    about = settings["project"]
    assert about["name"] == made.names.distribution
    assert about["dependencies"] == ["curvlab>=0.7,<0.8"]
    assert about["entry-points"] == {"curvlab": {made.names.name: made.names.package}}
    assert settings["build-system"]["build-backend"] == "hatchling.build"
    assert f'api_version = "{API_VERSION}"' in made.files[f"{made.names.package}/__init__.py"]
    assert "(c) 2026 " in made.files["LICENSE"]


def test_its_lint_rules_are_ours() -> None:
    ours = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    made = project("step", "my-step", version="0.1.0", year=2026)
    theirs = tomli.loads(made.files["pyproject.toml"])["tool"]["ruff"]
    assert theirs["line-length"] == ours["line-length"]
    assert theirs["target-version"] == ours["target-version"]
    assert theirs["lint"]["select"] == ours["lint"]["select"]
    assert theirs["lint"]["ignore"] == ours["lint"]["ignore"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_that_an_author_edits_is_short(kind: str, projects: dict[str, Generated]) -> None:
    made = projects[kind].made
    assert made.files[made.edit].count("\n") <= LINES


def test_a_structure_has_two_methods_to_write(projects: dict[str, Generated]) -> None:
    made = projects["structure"].made
    functions = [n.name for n in ast.walk(ast.parse(made.files[made.edit])) if isinstance(n, ast.FunctionDef)]
    assert sorted(functions) == ["dense", "member"]


@pytest.mark.parametrize("kind", [k for k in KINDS if k != METHOD])
@pytest.mark.parametrize("word", ["state", "entry", "solve", "block-vector", "tensor", "any"])
def test_a_class_shadows_nothing_in_its_module(kind: str, word: str) -> None:
    made = project(kind, word, version="0.1.0", year=2026)
    tree = ast.parse(made.files[made.edit])
    imported = {a.asname or a.name for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
    classes = [n.name for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
    assert not imported & set(classes)
    assert len(set(classes)) == len(classes)


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    made = project("step", "my-step", version="0.1.0", year=2026)
    (tmp_path / "there").mkdir()
    write(made, tmp_path / "there")  # an empty folder is as good as none
    before = {f: f.read_bytes() for f in (tmp_path / "there").rglob("*") if f.is_file()}
    (tmp_path / "file").write_text("mine")
    for taken in ("there", "file"):
        with pytest.raises(UsageError, match="exists and is not an empty folder. Nothing was written."):
            write(project("task", "my-step", version="0.1.0", year=2026), tmp_path / taken)
    assert {f: f.read_bytes() for f in (tmp_path / "there").rglob("*") if f.is_file()} == before
    assert (tmp_path / "file").read_text() == "mine"


def test_an_unknown_kind_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match='Did you mean "structure"'):
        project("structures", "x", version="0.1.0", year=2026)


def test_the_same_name_gives_the_same_files(tmp_path: Path) -> None:
    once, twice = (generate(tmp_path / word, [("step", "my-step")])[0] for word in ("a", "b"))
    assert once.made == twice.made
