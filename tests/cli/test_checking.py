"""``curvlab plugins check``: a part, a plugin, a class by its path; a table, or JSON; an exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from curvlab.registry.loader import installed
from tests.cli.conftest import Invoke

BROKEN = """
from dataclasses import dataclass
from curvlab.parts.schedules import Linear
from curvlab.protocols.krylov import Krylov

@dataclass(frozen=True)
class Whole(Linear):
    def __call__(self, step):
        return step

@dataclass(frozen=True)
class Idle(Krylov):
    limit = 1
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module ``checked_here`` with parts that are broken."""
    (tmp_path / "checked_here.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_part_in_order_is_a_table_of_passes_and_exit_code_0(invoke: Invoke) -> None:
    result = invoke("plugins", "check", "armijo")
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["check", "outcome", "message"]
    assert ["descends", "pass"] in [line.split() for line in lines]
    assert "step armijo: 15 pass" in result.stderr


def test_json_is_one_document_with_check_outcome_and_message(invoke: Invoke) -> None:
    result = invoke("plugins", "check", "identity", "--json")
    assert result.exit_code == 0, result.stderr
    (found,) = json.loads(result.stdout)
    assert (found["kind"], found["name"], found["part"]) == ("preconditioner", "identity", "Identity()")
    assert {"check": "pure", "outcome": "pass", "message": ""} in found["checks"]


@pytest.mark.usefixtures("mine")
def test_a_class_by_its_path_is_checked_and_a_failure_is_exit_code_1(invoke: Invoke) -> None:
    result = invoke("plugins", "check", "checked_here:Whole", "--set", "start=1.0", "--json")
    assert result.exit_code == 1
    (found,) = json.loads(result.stdout)
    assert found["kind"] == "schedule"
    failed = {row["check"]: row["message"] for row in found["checks"] if row["outcome"] == "fail"}
    assert failed == {"number": "Whole(0) must return a float, not 0"}


@pytest.mark.usefixtures("mine")
def test_a_class_that_owes_a_method_is_told_which(invoke: Invoke) -> None:
    result = invoke("plugins", "check", "checked_here:Idle")
    assert result.exit_code == 1
    assert "Idle does not define" in result.stdout
    assert "solve(self, A, b, *, x0=" in result.stdout


def test_settings_are_given_in_toml(invoke: Invoke) -> None:
    result = invoke("plugins", "check", "cosine", "--set", "peak=0.25", "--set", "steps=7", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)[0]["part"].startswith("Cosine(peak=0.25, steps=7")


def test_settings_that_nobody_said_are_filled_in(invoke: Invoke) -> None:
    result = invoke("plugins", "check", "clip", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)[0]["part"] == "Clip(norm=0.1)"


def test_a_part_that_what_was_filled_in_does_not_fit_is_skipped_with_the_way_out(invoke: Invoke) -> None:
    result = invoke("plugins", "check", "inverted")
    assert result.exit_code == 0
    assert "skip" in result.stdout
    assert "gauss-newton" in result.stdout
    assert "give other settings by --set KEY=VALUE" in result.stdout


def test_a_plugin_is_checked_part_by_part_and_a_kind_chooses(invoke: Invoke) -> None:
    result = invoke("plugins", "check", "core", "--kind", "schedule", "--json")
    assert result.exit_code == 0, result.stderr
    own = [e.name for e in installed().parts("schedule") if e.distribution == "curvlab"]
    assert "cosine" in own
    assert [(c["kind"], c["name"]) for c in json.loads(result.stdout)] == [("schedule", n) for n in own]


def test_a_method_is_checked_by_training_with_it(invoke: Invoke) -> None:
    result = invoke("plugins", "check", "plain", "--json")
    (found,) = json.loads(result.stdout)
    assert (found["kind"], found["name"]) == ("method", "plain")
    assert {"check": "resume", "outcome": "pass", "message": ""} in found["checks"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("armijoo",), 'Did you mean "armijo"'),
        (("armijo", "--kind", "setp"), 'Did you mean "step"'),
        (("armijo", "--kind", "sampler"), 'no sampler and no plugin is called "armijo"'),
        (("core", "--kind", "schedule", "--set", "steps=3"), "--set needs a single part"),
        (("no_such_module:Thing",), "cannot be imported: ModuleNotFoundError"),
        (("math:pi",), "is not a subclass of a protocol"),
        (("core", "--kind", "krylov", "--set", "nonsense"), "nonsense"),
    ],
)
def test_what_cannot_be_meant_is_exit_code_2_with_advice(
    invoke: Invoke, arguments: tuple[str, ...], says: str
) -> None:
    result = invoke("plugins", "check", *arguments)
    assert result.exit_code == 2, result.output
    assert says in result.stderr
