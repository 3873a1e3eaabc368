"""Warnings in a run: one line each, once, whoever causes them and however often."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from curvlab.cli.warned import warned_once
from curvlab.protocols.structure import NaiveFallback
from tests.cli.conftest import Shell

WARNS = """
import warnings
from dataclasses import dataclass

from curvlab.protocols.report import Reporter
from curvlab.protocols.structure import NaiveFallback


@dataclass(frozen=True)
class Warns(Reporter):
    def stepped(self, record):
        warnings.warn("Arrow.eye falls back", NaiveFallback)
        warnings.warn("Arrow.eye falls back", NaiveFallback)
        warnings.warn("Arrow.norm falls\\n  back", NaiveFallback)
"""

CONFIG = """
[run]
steps = 3
log_every = 1

[task]
use = "quadratic"

[method]
preconditioner = "identity"
damping = "constant"
step = { use = "rate", lr = 0.1 }

[report]
use = "warns:Warns"
"""


@pytest.fixture
def shown() -> Iterator[None]:
    """Warnings are shown each time, as if Python had never seen one."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


@pytest.mark.usefixtures("shown")
def test_a_warning_is_one_line_once_for_each_text(capsys: pytest.CaptureFixture[str]) -> None:
    with warned_once():
        for _ in range(2):
            for text in ("Arrow.eye falls back", "Arrow.norm\nfalls back"):
                warnings.warn(text, NaiveFallback, stacklevel=1)
    assert capsys.readouterr() == ("", "warning: Arrow.eye falls back\nwarning: Arrow.norm falls back\n")


@pytest.mark.usefixtures("shown")
def test_others_warnings_go_where_they_went(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown_before: list[tuple[str, type[Warning], str]] = []
    monkeypatch.setattr(warnings, "showwarning", lambda m, c, f, *_: shown_before.append((str(m), c, f)))
    with warned_once(quiet=True):
        warnings.warn("of somebody else", UserWarning, stacklevel=1)
    assert shown_before == [("of somebody else", UserWarning, __file__)]
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("shown")
def test_quiet_says_nothing_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    with warned_once(quiet=True):
        warnings.warn("Arrow.eye falls back", NaiveFallback, stacklevel=1)
    assert capsys.readouterr() == ("", "")


def test_what_is_to_be_an_error_stays_one() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with warned_once(), pytest.raises(NaiveFallback):
            warnings.warn("Arrow.eye falls back", NaiveFallback, stacklevel=1)


@pytest.mark.parametrize(("more", "lines"), [([], 2), (["--quiet"], 0)])
def test_a_run_says_each_fallback_once(more: list[str], lines: int, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "warns.py").write_text(WARNS)
    (tmp_path / "run.toml").write_text(CONFIG)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nfrom curvlab.cli.app import main\nmain()"
    out = ["--out", str(tmp_path / "runs")]
    done = shell("train", str(tmp_path / "run.toml"), *out, *more, python=code)
    assert done.returncode == 0, done.stderr
    expected = ["warning: Arrow.eye falls back", "warning: Arrow.norm falls back"][:lines]
    assert [line for line in done.stderr.splitlines() if "falls" in line] == expected
    assert "warns.py" not in done.stderr
