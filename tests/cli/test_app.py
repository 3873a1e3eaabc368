"""The command ``curvlab``: options, and what becomes of errors."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest
from typer.testing import CliRunner

from curvlab import __version__, errors
from curvlab.cli.app import app, blocked, words
from curvlab.errors import ConfigError, CurvlabError, Fault, PluginError, Stopped, UsageError
from tests.cli.conftest import Invoke, Shell

COMMANDS = ["train", "resume", "eval", "plot", "methods", "parts", "tasks", "config", "plugins", "env"]


def test_help_names_every_command(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    listed = [
        line.split()[0] for line in result.stdout.partition("Commands:")[2].splitlines() if line.strip()
    ]
    assert sorted(name for name in listed if name in COMMANDS) == sorted(COMMANDS)


@pytest.mark.parametrize(
    "command", [[name] for name in COMMANDS] + [["config", "check"], ["plugins", "list"]]
)
def test_every_command_has_help(invoke: Invoke, command: list[str]) -> None:
    result = invoke(*command, "--help")
    assert result.exit_code == 0
    assert "Usage: " in result.stdout


def test_version_is_one_line(invoke: Invoke) -> None:
    assert invoke("--version").stdout == f"curvlab {__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [["no-such-command"], ["parts", "--no-such-option"], ["config"], ["config", "check"], ["train"]],
)
def test_a_wrong_command_line_ends_with_exit_2(invoke: Invoke, arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize("value", ["fake", "no:", "yes:fake", ""])
def test_p_takes_no_colon_name_alone(value: str, invoke: Invoke) -> None:
    with pytest.raises(UsageError, match="expected no:NAME"):
        blocked([value])
    result = invoke("-p", value, "parts")
    assert result.exit_code == 2
    assert result.stderr.startswith("error: -p")


def test_p_blocks_a_plugin(invoke: Invoke) -> None:
    assert "picky" in invoke("parts", "step").stdout
    assert "picky" not in invoke("-p", "no:fake", "parts", "step").stdout
    assert os.environ["CURVLAB_DISABLE_PLUGINS"] == "fake"


RAISED: list[BaseException] = [
    UsageError("x"),
    ConfigError(Fault("x")),
    PluginError("x"),
    CurvlabError("x"),
    errors.Diverged("x"),
    errors.CheckpointError("x"),
    errors.DataError("x"),
    Stopped("x", 75),
]


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """What the command ``parts`` raises instead of listing."""
    waiting: list[BaseException] = []

    def fail() -> NoReturn:
        raise waiting.pop()

    monkeypatch.setattr("curvlab.cli.listing.installed", fail)
    return waiting


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_our_errors_end_with_their_exit_code_and_no_traceback(
    error: CurvlabError, raising: list[BaseException], invoke: Invoke
) -> None:
    raising.append(error)
    result = invoke("parts")
    assert result.exit_code == error.exit_code
    assert result.stdout == ""
    assert result.stderr == ("x\n" if isinstance(error, ConfigError) else "error: x\n")


def test_ctrl_c_ends_with_130(raising: list[BaseException], invoke: Invoke) -> None:
    raising.append(KeyboardInterrupt())
    result = invoke("parts")
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_bug_is_not_hidden(raising: list[BaseException], invoke: Invoke) -> None:
    raising.append(ZeroDivisionError("ours"))
    result = invoke("parts")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


def test_a_bug_shows_its_traceback_and_ends_with_1(shell: Shell) -> None:
    code = "import sys; from curvlab.cli import app, listing; listing.installed = lambda: 1 / 0; app.main()"
    result = shell("parts", python=code)
    assert result.returncode == 1
    assert "Traceback" in result.stderr
    assert result.stderr.rstrip().endswith("ZeroDivisionError: division by zero")


def test_several_faults_are_counted() -> None:
    assert words(ConfigError(Fault("a"), Fault("b"))) == "2 faults in the configuration\na\nb"
    assert words(ConfigError(Fault("a"))) == "a"


def test_no_arguments_show_the_help() -> None:
    assert "Usage: " in CliRunner().invoke(app, []).output


def test_a_shell_is_told_the_commands_that_begin_as_typed(shell: Shell) -> None:
    found = shell(
        python="from curvlab.cli.app import main; import sys; sys.argv[0] = 'curvlab'; main()",
        _CURVLAB_COMPLETE="complete_bash",
        COMP_WORDS="curvlab co",
        COMP_CWORD="1",
    )
    assert found.stdout.split() == ["compare", "config"]
