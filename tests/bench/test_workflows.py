"""Workflows are YAML that calls what is there: nox sessions, commands of curvlab, files."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

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
    for file in re.findall(r"(?:-r |^)(\.ci/\S+|requirements\S*\.txt)", text, re.M):
        assert (ROOT / file).is_file()


def test_the_sessions_that_workflows_stand_for_are_called() -> None:
    text = "\n".join(script for path in WORKFLOWS for script in scripts(path))
    assert all(f"nox -s {name}" in text for name in ("lint", "docs", "bench"))
    assert ".ci/run" in text


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
