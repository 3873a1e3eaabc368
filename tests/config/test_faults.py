"""Every faulty configuration in ``faults/`` ends in exit 3 and a message with file, line, key and remedy.

A file says itself what is wrong with it.  After the faulty value, ``#! KEY | TEXT`` expects a fault at
that line, at the dotted KEY, whose lines hold TEXT; ``#@ LINE | TEXT`` expects one at another line,
where a comment would change the meaning; ``#? KEY | TEXT`` one of something that stands nowhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from curvlab.cli.app import app

FILES = sorted((Path(__file__).parent / "faults").glob("*.toml"))


@dataclass(frozen=True)
class Expected:
    """A fault: its line, its key, and words of its message or hint."""

    line: int | None
    key: str
    text: str


def expectations(text: str) -> list[Expected]:
    found = []
    for number, line in enumerate(text.split("\n"), start=1):
        for mark, rest in re.findall(r"#([!@?]) (.*?)(?= #[!@?] |$)", line):
            where, _, words = rest.partition("|")
            at = {"!": number, "@": int(where) if mark == "@" else 0, "?": None}[mark]
            found.append(Expected(at, "" if mark == "@" else where.strip(), words.strip()))
    return found


def faults_in(message: str) -> list[str]:
    """The message cut into faults: each begins with a file at the start of a line.

    The marks are taken out of the source lines that a message shows: they are no words of ours.
    """
    message = re.sub(r"#[!@?] .*", "", message)
    return [part for part in re.split(r"(?m)^(?=\S+\.toml: |\S+\.toml:\d)", message) if part.strip()]


def test_there_are_sixty_and_more() -> None:
    assert len(FILES) >= 60


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
@pytest.mark.usefixtures("command_line")
def test_a_fault_is_told_with_file_line_key_and_remedy(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(file.parent)
    expected = expectations(file.read_text(encoding="utf-8"))
    assert expected, "the file says not what is wrong with it"

    result = CliRunner().invoke(app, ["config", "check", file.name])

    assert result.exit_code == 3, (result.exit_code, result.output, result.exception)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    told = faults_in(result.stderr.partition("faults in the configuration\n")[2] or result.stderr)
    for fault in expected:
        place = file.name if fault.line is None else f"{file.name}:{fault.line}:"
        key = f" {fault.key}: " if fault.key else " "
        here = [t for t in told if t.startswith(place) and key in t.split("\n")[0] and fault.text in t]
        assert here, f"expected {fault} in:\n{result.stderr}"
    assert len(told) == len(expected), f"more is told than is wrong:\n{result.stderr}"


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["config", "check", str(tmp_path / "gone.toml")])
    assert result.exit_code == 3
    assert f"{tmp_path / 'gone.toml'}: no such file" in result.stderr


def test_a_file_that_is_not_utf_8_is_told_with_the_line(tmp_path: Path) -> None:
    file = tmp_path / "latin.toml"
    file.write_bytes(b'[run]\nname = "caf\xe9"\n')  # codespell:ignore caf
    result = CliRunner().invoke(app, ["config", "check", str(file)])
    assert result.exit_code == 3
    assert f"{file}:2:12: the file is not UTF-8" in result.stderr
    assert "save the file as UTF-8" in result.stderr


@pytest.mark.usefixtures("command_line")
def test_the_source_line_is_shown_beneath_the_fault() -> None:
    file = next(f for f in FILES if f.stem == "task-key-unknown")
    result = CliRunner().invoke(app, ["config", "check", str(file)])
    assert "\n    batchsize = 3" in result.stderr
