"""Workflows are YAML that calls what is there: nox sessions, commands of curvlab, files."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import os
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import tomli
import yaml
from packaging.specifiers import SpecifierSet

pytestmark = pytest.mark.source_tree

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def load(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def scripts(path: Path) -> list[str]:
    """Everything that a workflow runs in a shell."""
    steps = [step for job in load(path)["jobs"].values() for step in job["steps"]]
    return [step["run"] for step in steps if "run" in step]


@lru_cache(maxsize=1)
def sessions() -> frozenset[str]:
    """Of the noxfile; ``nox --list`` tells only those that run by default."""
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    found = set()
    for node in tree.body:
        for made in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
            named = [k.value.value for k in getattr(made, "keywords", []) if k.arg == "name"]
            if ast.unparse(made).startswith("nox.session"):
                found.add(named[0] if named else node.name)
    return frozenset(found)


def test_there_are_three() -> None:
    assert [path.stem for path in WORKFLOWS] == ["bench", "docs", "tests"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_a_workflow_is_whole(path: Path) -> None:
    workflow = load(path)
    assert workflow["name"] == path.stem
    assert {"push", "pull_request"} <= set(workflow[True])  # YAML reads the word "on" as true
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["runs-on"]
        assert job["timeout-minutes"] <= 90
        assert all(("run" in step) != ("uses" in step) for step in job["steps"])


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_what_a_workflow_calls_exists(path: Path) -> None:
    text = "\n".join(scripts(path))
    calls = re.findall(r"nox -s ((?:[a-z]+(?:-[a-z]+)*(?: |$))+)", text, re.M)
    named = {word for call in calls for word in call.split()}
    assert named <= sessions()
    for command in re.findall(r"^\s*curvlab ([a-z]+ [a-z]+)", text, re.M):
        asked = [sys.executable, "-m", "curvlab", *command.split(), "--help"]
        assert subprocess.run(asked, capture_output=True, check=False).returncode == 0, command
    for file in re.findall(r"(?:-[rc] |^)(\.ci/\S+|\w+\S*\.txt)", text, re.M):
        assert (ROOT / file).is_file()
        assert file.endswith(".txt") or os.access(ROOT / file, os.X_OK), f"{file} is not executable"


def test_the_sessions_that_workflows_stand_for_are_called() -> None:
    text = "\n".join(script for path in WORKFLOWS for script in scripts(path))
    assert all(f"nox -s {name}" in text for name in ("lint", "tests", "docs", "bench", "wheels", "scaffolds"))
    assert ".ci/run" in text


def steps(path: Path) -> list[dict[str, Any]]:
    return [step for job in load(path)["jobs"].values() for step in job["steps"]]


def test_actions_are_pinned_by_a_commit_with_its_tag_beside_it() -> None:
    """A tag can be moved; one action has one pin in all workflows."""
    pinned: dict[str, set[str]] = {}
    for path in WORKFLOWS:
        uses = re.findall(r"uses: (\S+?)(?:@(\S+))?(?: # (v\d+\.\d+\.\d+))?$", path.read_text(), re.M)
        assert len(uses) == sum("uses" in step for step in steps(path))
        for action, commit, tag in uses:
            assert re.fullmatch(r"[0-9a-f]{40}", commit), f"{path.name}: {action}@{commit}"
            assert tag, f"{path.name}: {action} has no tag in a comment"
            pinned.setdefault(action, set()).add(f"{commit} {tag}")
    assert all(len(found) == 1 for found in pinned.values()), pinned


def test_the_suite_runs_on_every_python_that_is_promised() -> None:
    jobs = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]
    (own,) = (s["with"]["python-version"] for s in jobs["tests"]["steps"] if "with" in s)
    about = tomli.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    word = "Programming Language :: Python :: 3."
    promised = {c.rpartition(" ")[2] for c in about["classifiers"] if c.startswith(word)}
    assert {own, *jobs["versions"]["strategy"]["matrix"]["python"]} == promised
    minor = sorted(int(version.partition(".")[2]) for version in promised)
    assert minor == list(range(minor[0], minor[-1] + 1))
    allowed = SpecifierSet(about["requires-python"])
    assert f"3.{minor[0]}" in allowed
    assert f"3.{minor[0] - 1}" not in allowed


def test_wheels_are_tested_with_both_promised_versions_of_torch() -> None:
    jobs = load(ROOT / ".github" / "workflows" / "tests.yml")["jobs"]
    files = (ROOT / name for name in ("constraints.txt", "constraints-lowest.txt"))
    pins = [re.findall(r"^torch==(\S+)$", path.read_text(), re.M) for path in files]
    assert jobs["wheels"]["strategy"]["matrix"]["torch"] == [*itertools.chain(*pins)]


@lru_cache(maxsize=1)
def commands() -> ModuleType:
    """``.ci/commands.py``."""
    spec = importlib.util.spec_from_file_location("commands", ROOT / ".ci" / "commands.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_the_commands_of_every_job_are_one_shell_script(path: Path) -> None:
    """``.ci/commands.py`` prints it: a job is run as it is, in a clone, without GitHub."""
    for job, about in load(path)["jobs"].items():
        matrix = about.get("strategy", {}).get("matrix", {})
        for values in itertools.product(*matrix.values()):
            text = commands().script(load(path), job, dict(zip(matrix, values, strict=True)))
            done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, ""), text
            assert "${{" not in text
            assert all(value in text or not matrix or "python" in matrix for value in values)
    with pytest.raises(KeyError, match="no pythons in its matrix"):
        commands().script(load(path), next(iter(load(path)["jobs"])), {"pythons": "3.13"})


def test_the_site_is_published_from_main_alone_and_by_a_job_that_may_do_nothing_else() -> None:
    job = load(ROOT / ".github" / "workflows" / "docs.yml")["jobs"]["publish"]
    assert job["if"] == "github.ref == 'refs/heads/main'"
    assert job["permissions"] == {"pages": "write", "id-token": "write"}
    assert not [step for step in job["steps"] if "run" in step]


def test_a_comparison_is_the_summary_of_its_job() -> None:
    text = "\n".join(scripts(ROOT / ".github" / "workflows" / "bench.yml"))
    assert '--markdown "$GITHUB_STEP_SUMMARY"' in text


def test_ci_runs_every_benchmark_once_and_tells_of_either_failure() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "bench-smoke" in sessions()
    assert ".venv/bin/nox -s bench-smoke || status=$((status ? status : 1))" in script
    assert script.rstrip().endswith('exit "$status"')


def test_history_is_appended_from_main_alone_and_on_one_machine() -> None:
    jobs = load(ROOT / ".github" / "workflows" / "bench.yml")["jobs"]
    assert jobs["history"]["if"] == "github.event_name == 'push'"
    assert jobs["compare"]["if"] == "github.event_name == 'pull_request'"
    assert "permissions" not in jobs["compare"]
    text = "\n".join(scripts(ROOT / ".github" / "workflows" / "bench.yml"))
    assert text.count('--machine "$MACHINE"') == 4
    assert "git push origin benchmark-results" in text
