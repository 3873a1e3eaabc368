"""What is nested too deeply, has too many digits or is laid over a method's file is told with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from curvlab.cli.app import app
from curvlab.config import build, load
from curvlab.errors import ConfigError, Fault, UsageError

GOOD = '[run]\nsteps = 1\n[task]\nuse = "digits"\n[method]\nuse = "singd"\n'


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("lr = " + "[" * 40 + "]" * 40, ":7:37: nested more than 32 levels deep"),
        ("lr = " + "[" * 2000 + "]" * 2000, ":7: nested more than 32 levels deep"),
        ("lr = " + "{a=" * 900 + "1" + "}" * 900, ":7: nested more than 32 levels deep"),
        (".".join("a" * 60) + " = 1", ":7:63: nested more than 32 levels deep"),
        (".".join("a" * 3000) + " = 1", ":7: nested more than 32 levels deep"),
        ("lr = " + "9" * 5000, ":7: the number has too many digits"),
        ("lr = 9223372036854775808", ":7:1: method.lr: the whole number is too large for 64 bits"),
        ("lr = 1e39", ":7:1: method.lr: 1e+39 is larger than the largest float32"),
        ("lr = inf", ":7:1: method.lr: inf is not a finite number"),
    ],
    ids=lambda text: str(text)[:20],
)
def test_what_no_number_or_table_can_be_is_told_with_its_line(tmp_path: Path, line: str, says: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"{GOOD}{line}\n", encoding="utf-8")
    result = CliRunner().invoke(app, ["config", "check", str(file)])
    assert result.exit_code == 3
    assert f"{file}{says}" in result.stderr
    assert len(result.stderr) < 1000


def test_limits_hold_for_set_and_for_python_too() -> None:
    for setting in ("method.lr=" + "[" * 999, "a." * 2000 + "a=1", "method.lr=" + "[" * 40 + "]" * 40):
        with pytest.raises((UsageError, ConfigError)):
            build(load(data={"run": {"steps": 1}, "task": "digits", "method": "singd"}, overrides=[setting]))
    data: dict[str, Any] = {}
    data["itself"] = data
    with pytest.raises(ConfigError, match="nested more than 32 levels deep"):
        load(data=data)


@pytest.mark.parametrize(
    "wrong", ["labels = { a = 1 }", "structure = { use = {} }", "preconditioner.use = { lr = 1 }"]
)
def test_a_wrong_table_is_the_users_fault_and_line_not_the_method_files(tmp_path: Path, wrong: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(f"{GOOD}{wrong}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        build(load(file))
    (fault,) = caught.value.faults
    assert (fault.file, fault.line) == (str(file), 7)


def test_messages_show_neither_control_characters_nor_screens_of_text_nor_records() -> None:
    said = str(Fault("got \x1b[31m" + "x" * 5000 + "\u202e", path="a\nb" * 90, source="\x00" + "y" * 500))
    assert said.replace("\n", "").isprintable()
    assert len(said) < 800
    with pytest.raises(ConfigError) as caught:
        build(load(data={"run": {"steps": 1}, "task": "digits", "method": {"use": ["singd"]}}))
    assert "expected a name in quotes, got an array of 1" in str(caught.value)
    assert "Node(" not in str(caught.value)
