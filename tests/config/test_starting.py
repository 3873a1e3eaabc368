"""What ``curvlab init`` writes: it trains as it is, and each of its comments is the default that it says."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli
from typer.testing import CliRunner

from curvlab.cli.app import app
from curvlab.config import build, load
from curvlab.config.knobs import read_method
from curvlab.config.starting import MISSING, starting
from curvlab.registry import MethodEntry, PartEntry
from curvlab.tasks.quadratic import Quadratic
from tests.limits.registered import registry

#: a comment that is a setting
SETTING = re.compile(r"^# (?=[a-z_A-Z]+ = )", re.MULTILINE)
METHODS = [pytest.param(entry, id=entry.name) for entry in registry().method_entries()]
#: not those with a setting that has no default
TASKS = [
    pytest.param(entry, id=entry.name)
    for entry in registry().parts("task")
    if entry.name not in ("pde", "svd")
]


def resolved(text: str) -> dict[str, Any]:
    return dict(build(load(data=tomli.loads(text)), registry()).resolved)


def without_fallback(tables: Mapping[str, Any]) -> dict[str, Any]:
    """A knob of the method's own rate sets the fallback's as well, once it is given."""
    return {**tables, "method": {k: v for k, v in tables["method"].items() if k != "fallback"}}


@pytest.mark.parametrize("method", METHODS)
def test_every_knob_is_there_and_its_value_is_one_that_the_method_takes(method: MethodEntry) -> None:
    text = starting(registry(), registry().part("task", "digits"), method)
    as_it_is = resolved(text)
    assert tomli.loads(text)["method"] == {"use": registry().use(method)}
    for knob in read_method(method).knobs:
        assert re.search(rf"^# {knob}( = |: |$)", text, re.MULTILINE), knob
    assert without_fallback(resolved(SETTING.sub("", text))) == without_fallback(as_it_is)


@pytest.mark.parametrize("task", TASKS)
def test_the_settings_of_a_task_are_its_defaults(task: PartEntry) -> None:
    text = starting(registry(), task, registry().method("sgd"))
    assert resolved(SETTING.sub("", text)) == resolved(text)


@dataclass(frozen=True, kw_only=True)
class Needy(Quadratic):
    many: int  #: how many there are


def test_a_setting_without_a_default_is_refused_until_it_is_replaced() -> None:
    task = PartEntry("task", "needy", f"{__name__}:Needy", "a task")
    text = starting(registry(), task, registry().method("sgd"))
    assert f'many = "{MISSING}"  # how many there are; it has no default\n' in text


def test_the_command_writes_a_file_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, ["init", "quadratic", "sgd"])
    assert (done.exit_code, done.stdout) == (0, "quadratic-sgd.toml\n  curvlab train quadratic-sgd.toml\n")
    assert CliRunner().invoke(app, ["config", "check", "quadratic-sgd.toml"]).exit_code == 0
    again = CliRunner().invoke(app, ["init", "quadratic", "sgd"])
    assert again.exit_code == 2
    assert "quadratic-sgd.toml exists, and nothing was written" in again.stderr
    wrong = CliRunner().invoke(app, ["init", "digit", "sgd", "--out", "a.toml"])
    assert wrong.exit_code == 3
    assert 'Did you mean "digits"' in wrong.stderr
    assert not Path("a.toml").exists()
