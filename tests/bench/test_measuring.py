"""Commits without results: asv is run for them, or the command is told that runs it."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curvlab.bench import measuring
from curvlab.errors import ResultsError, UsageError

COMMITS = ["a" * 40, "b" * 40]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "asv_benchmarks").mkdir()
    path = tmp_path / "asv_benchmarks" / "asv.conf.json"
    path.write_text('{\n  // where they are kept\n  "results_dir": "kept"\n}')
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], str]]:
    """Every process that would have been run, and what it would have read."""
    found: list[tuple[list[str], str]] = []

    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        found.append((command, options.get("input", "")))
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", run)
    return found


def test_a_project_is_found_from_any_folder_in_it(project: Path) -> None:
    inner = project / "a" / "b"
    inner.mkdir(parents=True)
    assert measuring.required(inner).results == project / "asv_benchmarks" / "kept"


def test_a_folder_without_benchmarks_says_what_to_give_instead(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--results"):
        measuring.required(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_configuration_that_cannot_be_read_is_named(project: Path, text: str) -> None:
    (project / "asv_benchmarks" / "asv.conf.json").write_text(text)
    with pytest.raises(ResultsError, match=r"asv\.conf\.json"):
        measuring.required(project)


def test_deterministic_benchmarks_are_run_for_what_is_missing(
    project: Path, called: list[tuple[list[str], str]]
) -> None:
    measuring.measured(project, COMMITS, "ci", times=False, run=True)
    (machine, _), (command, read) = called
    assert machine[1:4] == ["-m", "asv", "machine"]
    assert command[:4] == [sys.executable, "-m", "asv", "run"]
    assert {"--machine", "ci", r"\btrack_", "HASHFILE:-"} <= set(command)
    assert read.split() == COMMITS


@pytest.mark.parametrize(
    ("times", "name", "chosen"),
    [
        (False, "steps.Costs.track_flops('kfac', 'mlp')", True),
        (False, "steps.Costs.track_flops('sgd', 'mlp')", False),
        (False, "steps.Times.time_step('kfac', 'mlp')", False),
        (True, "steps.Times.time_step('kfac', 'mlp')", True),
        (True, "steps.Times.time_step('sgd', 'mlp')", False),
    ],
)
def test_benchmarks_are_chosen_by_name(
    project: Path, called: list[tuple[list[str], str]], times: bool, name: str, chosen: bool
) -> None:
    measuring.measured(project, COMMITS, "", times=times, run=True, bench="steps.*kfac")
    *_, (command, _) = called
    pattern = command[command.index("--bench") + 1]
    assert bool(re.search(pattern, name)) == chosen  # as asv does


def test_times_are_taken_in_turns(project: Path, called: list[tuple[list[str], str]]) -> None:
    (project / ".asv-machine.json").write_text(json.dumps({"ci": {}}))
    measuring.measured(project, COMMITS, "ci", times=True, run=True)
    ((command, _),) = called  # the machine is known
    assert "--interleave-rounds" in command
    assert "--bench" not in command


def test_without_asv_the_command_is_told(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "find_spec", lambda name: None)
    with pytest.raises(ResultsError, match="pip install asv") as caught:
        measuring.measured(project, COMMITS, "", times=False, run=True)
    words = shlex.split(str(caught.value).splitlines()[-1])
    assert words[1:4] == ["%s\\n", *COMMITS]
    assert words[5:7] == ["asv", "run"]


def test_an_asv_that_fails_is_told_with_its_command(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(ResultsError, match=r"asv ended with 1:\n  printf"):
        measuring.measured(project, COMMITS, "", times=False, run=True)


def test_a_benchmark_that_fails_is_a_result(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 2))
    measuring.measured(project, COMMITS, "", times=False, run=True)
