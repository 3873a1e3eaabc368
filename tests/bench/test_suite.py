"""The suite itself: what asv installs, what there is to measure, and that old commits can be measured."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from curvlab.registry.loader import installed

pytestmark = pytest.mark.source_tree

ROOT = Path(__file__).resolve().parents[2]
SUITE = ROOT / "asv_benchmarks"
MODULES = ("operators", "structures", "solves", "steps", "progress", "startup")


def configuration() -> dict[str, Any]:
    text = (SUITE / "asv.conf.json").read_text(encoding="utf-8")
    found = json.loads(re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    assert isinstance(found, dict)
    return found


def catalogue() -> dict[str, Any]:
    asked = [sys.executable, str(SUITE / "benchmarks" / "catalogue.py")]
    path = ":".join(str(p) for p in (ROOT, *ROOT.glob("plugins/*")))
    done = subprocess.run(asked, env={"PYTHONPATH": path}, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_every_pin_is_that_of_the_constraints() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = {
        p.name: str(p.specifier)
        for p in pins
        if p.marker is None or p.marker.evaluate({"python_version": "3.11"})
    }
    asked = configuration()["matrix"]["req"]
    assert {name: f"=={versions[0]}" for name, versions in asked.items()} == {
        name: here[name] for name in asked
    }
    assert all(len(versions) == 1 for versions in asked.values())


def test_everything_that_the_core_imports_is_installed() -> None:
    import tomli

    about = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [*about["project"]["dependencies"], *about["project"]["optional-dependencies"]["digits"]]
    needed += about["build-system"]["requires"]
    assert {Requirement(r).name for r in needed} == set(configuration()["matrix"]["req"])


def test_asv_builds_virtual_environments_and_forks() -> None:
    found = configuration()
    assert found["environment_type"] == "virtualenv"
    assert found["launch_method"] == "forkserver"
    assert all(
        "distributions.py" in command
        for name in found
        if name.endswith("_command")
        for command in found[name]
    )


def test_everything_that_is_registered_is_measured() -> None:
    found, registry = catalogue(), installed()
    assert set(found["methods"]) >= {
        e.name for e in registry.method_entries() if e.distribution.startswith("curvlab")
    }
    for kind, names in (("structure", found["structures"]), ("krylov", found["solvers"])):
        assert set(names) >= {e.name for e in registry.parts(kind) if e.distribution.startswith("curvlab")}
    assert found["methods"]["kfac"] == 10  # its refresh


@pytest.mark.parametrize("module", MODULES)
def test_a_benchmark_says_its_version_and_its_unit(module: str) -> None:
    tree = ast.parse((SUITE / "benchmarks" / f"{module}.py").read_text(encoding="utf-8"))
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes
    for node in classes:
        assigned = {
            ast.unparse(t) for item in ast.walk(node) if isinstance(item, ast.Assign) for t in item.targets
        }
        tracked = [
            f.name for f in node.body if isinstance(f, ast.FunctionDef) and f.name.startswith("track_")
        ]
        assert "version" in assigned
        assert {f"{name}.unit" for name in tracked} <= assigned


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_of_the_package_only_what_every_commit_has(module: str) -> None:
    tree = ast.parse((SUITE / "benchmarks" / f"{module}.py").read_text(encoding="utf-8"))
    eager = [ast.unparse(node) for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert all(line == "import curvlab" for line in eager if "curvlab" in line)
