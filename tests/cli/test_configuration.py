"""``config check``, ``config show`` and ``config schema``; faults have tests of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tomli

from tests.cli.conftest import Invoke, Shell

CONFIG = '[run]\nsteps = 3\n[task]\nuse = "quadratic"\n[method]\nuse = "fake"\nlr = 0.5\n'


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "c.toml"
    file.write_text(CONFIG)
    return file


def test_a_configuration_in_order_is_told_in_one_line(config: Path, invoke: Invoke) -> None:
    result = invoke("config", "check", str(config))
    assert result.exit_code == 0
    assert result.stdout == f"{config}: in order, fake on quadratic\n"


def test_overrides_are_checked_too(config: Path, invoke: Invoke) -> None:
    assert (
        invoke("config", "check", str(config), "--set", "run.steps=5", "--set", "method.lr=1").exit_code == 0
    )
    result = invoke("config", "check", str(config), "--set", "method.lr=-1")
    assert result.exit_code == 3
    assert result.stderr.startswith("--set: method.lr: lr = -1")


def test_what_is_shown_is_toml_that_shows_itself(config: Path, tmp_path: Path, invoke: Invoke) -> None:
    shown = invoke("config", "show", str(config), "--set", "run.seed=4").stdout
    assert f"lr = 0.5  # {config}:7" in shown
    assert "seed = 4  # --set" in shown
    assert "keep = 2  # default" in shown
    assert "value = 0.001  # method fake (curvlab_fake/methods/fake.toml:17)" in shown
    again = tmp_path / "again.toml"
    again.write_text(shown)
    assert tomli.loads(invoke("config", "show", str(again)).stdout) == tomli.loads(shown)


def test_the_schema_is_one_json_document(invoke: Invoke) -> None:
    schema = json.loads(invoke("config", "schema").stdout)
    assert schema["$schema"].endswith("2020-12/schema")
    assert {
        "run",
        "task",
        "method",
        "sampler",
        "precision",
        "average",
        "callbacks",
        "report",
        "extends",
    } == schema["properties"].keys()


def test_faults_reach_the_shell(config: Path, shell: Shell) -> None:
    config.write_text(CONFIG.replace("lr", "lrr"))
    result = shell("config", "check", str(config))
    assert result.returncode == 3
    assert result.stdout == ""
    assert result.stderr == (
        f"{config}:7:1: method.lrr: unknown key lrr\n    lrr = 0.5\n"
        '  Did you mean "lr"?  Knobs and places: damping, decay, fallback, first, lr, momentum, on_gradient, '
        "on_update, preconditioner, rate2, sampler, step, structure, structure_in.\n"
    )
