"""Import strings: what they may name, and who is to blame if they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from curvlab.cli.app import app
from curvlab.errors import ConfigError, PluginError
from curvlab.parts.steps import Rate
from curvlab.registry import PartEntry
from curvlab.registry.imports import is_import_string, part_class, protocol
from curvlab.registry.kinds import PROTOCOLS


@pytest.mark.parametrize("text", ["a:B", "a.b_c:D", "a.b:C.D", "_a:_b"])
def test_a_module_a_colon_and_a_name_are_an_import_string(text: str) -> None:
    assert is_import_string(text)


@pytest.mark.parametrize("text", ["a", "a.b", ":B", "a:", "a-b:C", "a:B:C", "a b:C", "1a:B", ""])
def test_anything_else_is_none(text: str) -> None:
    assert not is_import_string(text)


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_every_protocol_can_be_imported(kind: str) -> None:
    assert isinstance(protocol(kind), type)


def test_a_part_is_imported_when_it_is_asked_for() -> None:
    assert part_class(PartEntry("step", "rate", "curvlab.parts.steps:Rate", "x", distribution="d")) is Rate


@pytest.mark.parametrize(
    ("factory", "says"),
    [
        ("no.such:Thing", "cannot be imported: ModuleNotFoundError"),
        ("curvlab.parts.steps:Nothing", "cannot be imported: AttributeError"),
        ("curvlab.parts.damping:Constant", "is not a subclass of curvlab.protocols.step.StepRule"),
        ("math:pi", "is not a subclass"),
        ("curvlab.protocols.step:StepRule", "is not a dataclass"),
    ],
)
def test_who_named_it_is_to_blame(factory: str, says: str) -> None:
    with pytest.raises(PluginError, match='step "x"') as plugins:
        part_class(PartEntry("step", "x", factory, "x", distribution="d", version="1"))
    with pytest.raises(ConfigError) as users:
        part_class(PartEntry("step", factory, factory, ""))
    assert says in str(plugins.value)
    assert says in str(users.value)
    assert "PYTHONPATH" in str(users.value)


FOREIGN = """
[run]
steps = 1
[task]
use = "quadratic"
[method]
preconditioner = "identity"
damping = "constant"
step = "mod_foreign:Step"
"""


@pytest.mark.parametrize(("allowed", "runs"), [("0", False), ("no", False), ("1", True), ("", True)])
def test_an_import_string_is_a_fault_where_the_environment_forbids_it(
    allowed: str, runs: bool, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its module is not imported: whoever checks a foreign file runs nothing of it."""
    mark = site / "was-run"
    (site / "mod_foreign.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise SystemExit(0)\n")
    (site / "c.toml").write_text(FOREIGN)
    monkeypatch.setenv("CURVLAB_IMPORTS", allowed)
    for command in (["config", "check"], ["train", "--dry-run"], ["train"]):
        done = CliRunner().invoke(app, [*command, str(site / "c.toml")])
        assert done.exit_code == 3, done.output
        assert f"{site / 'c.toml'}:9:1: method.step: " in done.stderr
        wanted = "cannot be imported: SystemExit: 0 (" if runs else f"CURVLAB_IMPORTS={allowed} forbids"
        assert wanted in done.stderr
    checked = CliRunner().invoke(app, ["plugins", "check", "mod_foreign:Step"])
    assert checked.exit_code == (2 if runs else 3)
    assert mark.exists() == runs


def test_parts_that_are_registered_are_imported_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CURVLAB_IMPORTS", "0")
    assert part_class(PartEntry("step", "rate", "curvlab.parts.steps:Rate", "x", distribution="d")) is Rate


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("rate(self, step)", "error: code of a part ended the command: SystemExit: 0 ("),
        ("search(self, state, line, step)", "error: a part raised SystemExit: 0 ("),
    ],
)
def test_a_part_that_exits_while_a_command_runs_ends_it_with_a_message_and_code_1(
    method: str, says: str, site: Path
) -> None:
    (site / "mod_leaving.py").write_text(
        "from dataclasses import dataclass\n"
        "from curvlab.parts.steps import Rate\n"
        "@dataclass(frozen=True)\n"
        "class Leaving(Rate):\n"
        "    lr: float = 0.1\n"
        f"    def {method}:\n"
        "        raise SystemExit(0)\n"
    )
    (site / "c.toml").write_text(FOREIGN.replace("mod_foreign:Step", "mod_leaving:Leaving"))
    done = CliRunner().invoke(app, ["train", str(site / "c.toml"), "--out", str(site / "runs")])
    assert done.exit_code == 1
    assert says in done.stderr
    assert "mod_leaving.py:7)" in done.stderr


@pytest.mark.parametrize("raises", ["RuntimeError('no luck')", "SystemExit(0)", "GeneratorExit"])
def test_a_part_that_raises_when_it_is_made_is_a_fault_at_its_key(raises: str, site: Path) -> None:
    (site / "mod_unmade.py").write_text(
        "from dataclasses import dataclass\n"
        "from curvlab.parts.steps import Rate\n"
        "@dataclass(frozen=True)\n"
        "class Unmade(Rate):\n"
        "    lr: float = 0.1\n"
        "    def __post_init__(self):\n"
        f"        raise {raises}\n"
    )
    (site / "c.toml").write_text(FOREIGN.replace("mod_foreign:Step", "mod_unmade:Unmade"))
    done = CliRunner().invoke(app, ["config", "check", str(site / "c.toml")])
    assert done.exit_code == 3
    assert f"{site / 'c.toml'}:9:1: method.step: " in done.stderr
    assert f"cannot be made: {raises.split('(')[0]}" in done.stderr
    assert "mod_unmade.py:7)" in done.stderr
