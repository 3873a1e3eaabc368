"""A user's own equation is short, and what its page shows of runs and messages is what happens."""

from __future__ import annotations

from pathlib import Path

import pytest
import tomli

import curvlab
from tests.test_docs import BLOCKS, ROOT

PAGE = ROOT / "docs" / "differential-equations.md"
EXAMPLE = ROOT / "docs" / "examples" / "own-equation"

#: lines that are not empty
PYTHON, TOML = 25, 15


def blocks(kind: str) -> list[str]:
    """The page's blocks of a language."""
    return [b.text for b in BLOCKS if b.page == PAGE and b.kind == kind]


def test_an_equation_of_ones_own_is_short() -> None:
    for text, most in ((blocks("python")[0], PYTHON), (blocks("toml")[0], TOML)):
        assert sum(bool(line.strip()) for line in text.splitlines()) <= most


def test_the_example_is_what_the_page_shows() -> None:
    assert blocks("python")[0] == (EXAMPLE / "my_equation.py").read_text(encoding="utf-8")
    assert blocks("toml")[0] == (EXAMPLE / "my_equation.toml").read_text(encoding="utf-8")


def test_the_example_reaches_the_error_that_the_page_promises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    data = tomli.loads(blocks("toml")[0])
    run = curvlab.train({**data, "report": {"use": "quiet"}}, out=str(tmp_path))
    assert run.summary["metrics"]["val_l2"] < 1e-5


def test_messages_are_those_that_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = (text for text in blocks("python") if "print(error)" in text)
    exec(compile(code, str(PAGE), "exec"), {})
    assert capsys.readouterr().out == blocks("text")[-1]
