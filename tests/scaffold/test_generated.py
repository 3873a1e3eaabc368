"""Untouched, every new plugin is clean, typed, conforming, and trains."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

import curvlab
from curvlab.cli.app import app
from curvlab.protocols.structure import NaiveFallback
from curvlab.registry.kinds import KINDS, LAYER, METHOD
from curvlab.scaffold.names import LONGEST
from tests.scaffold.generated import ROOT, Generated, generate

#: a few steps are enough to go through every part once
SHORT = ("--set", "run.steps=2", "--set", "run.eval_every=2")


def run(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """A Python module's output; its failure is the test's."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def train(folder: Path, config: str) -> dict[str, object]:
    """Train what a configuration says, in this process; the run's summary."""
    (folder / "config.toml").write_text(config, encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NaiveFallback)
        result = CliRunner().invoke(app, ["train", "config.toml", "--json", *SHORT])
    assert result.exit_code == 0, result.output
    summary: dict[str, object] = json.loads(result.stdout)
    return summary


def test_ruff_has_nothing_to_say_whatever_the_name(projects: dict[str, Generated], tmp_path: Path) -> None:
    """Lines are laid out by their length, and that is the name's."""
    longest = "x" * LONGEST
    others = generate(tmp_path, [(kind, name) for kind in KINDS for name in ("x", "a-b-c-d", longest)])
    folders = [str(p.folder) for p in (*projects.values(), *others)]
    run("ruff", "check", "--no-cache", *folders, cwd=tmp_path)
    run("ruff", "format", "--no-cache", "--check", *folders, cwd=tmp_path)


def test_mypy_has_nothing_to_say(
    projects: dict[str, Generated], environment: dict[str, str], tmp_path: Path
) -> None:
    files = [f for p in projects.values() for f in p.python(p.made.names.package, "tests", "benchmarks")]
    files = [f for f in files if not f.endswith("benchmarks/__init__.py")]  # they are of one name
    assert len(files) >= 3 * len(KINDS)
    files.append(str(ROOT / "docs" / "examples" / "curvlab-hello" / "curvlab_hello" / "hello.py"))
    strictly = ("--strict", "--python-version", "3.10", "--explicit-package-bases", "--config-file=")
    paths = {**environment, "MYPYPATH": environment["PYTHONPATH"]}
    run("mypy", *strictly, "--cache-dir", str(ROOT / ".mypy_cache"), *files, cwd=tmp_path, env=paths)


def test_their_own_tests_pass(projects: dict[str, Generated], environment: dict[str, str]) -> None:
    settings = projects["step"].folder / "pyproject.toml"
    tests = [str(p.folder / "tests") for p in projects.values()]
    said = run(
        "pytest", "-q", "-p", "no:cacheprovider", "-c", str(settings), *tests, cwd=ROOT, env=environment
    )
    assert "passed" in said


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_trains_with_it_by_its_name(kind: str, projects: dict[str, Generated], installed: Path) -> None:
    new = projects[kind]
    assert train(installed, new.example)["steps"] == 2
    (folder,) = (installed / "runs").iterdir()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert f"{new.made.names.distribution} 0.1.0" in json.dumps(manifest)


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in (METHOD, LAYER)])
def test_a_run_trains_with_it_by_its_import_string_uninstalled(
    kind: str, projects: dict[str, Generated], uninstalled: Path
) -> None:
    new = projects[kind]
    lines = new.example.splitlines()
    by_path = [
        x if x.startswith("name") else x.replace(f'"{new.name}"', f'"{new.import_string}"') for x in lines
    ]
    assert by_path != lines
    assert train(uninstalled, "\n".join(by_path))["steps"] == 2


@pytest.mark.parametrize("kind", KINDS)
def test_listings_show_it_in_its_own_words(
    kind: str, projects: dict[str, Generated], installed: Path
) -> None:
    listing = ["methods", "--json"] if kind == METHOD else ["parts", kind, "--json"]
    rows = json.loads(CliRunner().invoke(app, listing).stdout)
    (row,) = (row for row in rows if row["distribution"] == projects[kind].made.names.distribution)
    assert row["name"] == projects[kind].name
    assert row["summary"] in (projects[kind].folder / "pyproject.toml").read_text(encoding="utf-8")


def test_a_layer_plugin_that_is_installed_teaches_methods_its_layer(
    projects: dict[str, Generated], installed: Path
) -> None:
    new = projects[LAYER]
    for method in ("kfac", "ekfac", "singd"):
        layer = importlib.import_module(f"{new.made.names.package}._example").Stored(4, 3)
        assert [row.reason for row in curvlab.optimizer(method, layer).coverage()] == [""]


def test_pip_builds_a_pure_wheel_and_installs_it(projects: dict[str, Generated], tmp_path: Path) -> None:
    source = projects["structure"].folder
    offline = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q")
    run("pip", "wheel", *offline, "-w", str(tmp_path / "wheels"), str(source), cwd=tmp_path)
    (wheel,) = (tmp_path / "wheels").iterdir()
    assert wheel.name == "curvlab_my_arrow-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    assert {"curvlab_my_arrow/my_arrow.py", "curvlab_my_arrow/py.typed"} <= inside
    run("pip", "install", *offline, "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path)
    path = f"{tmp_path / 'site'}:{ROOT}"
    clean = {"PYTHONPATH": path, "CURVLAB_PLUGINS": "my-arrow", "PATH": "", "HOME": str(tmp_path)}
    records = json.loads(run("curvlab", "plugins", "list", "--json", cwd=tmp_path, env=clean))
    (mine,) = (r for r in records if r["name"] == "my-arrow")
    assert (mine["status"], mine["parts"]) == ("ok", ["structure/my-arrow"])
