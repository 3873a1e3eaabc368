"""The terminal: moving where it is one, plain lines where it is none, nothing when asked."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import fields
from typing import Any

import pytest

from curvlab.protocols.report import EvalRecord, Event, Reporter, StepRecord
from curvlab.reporting.console import Console
from curvlab.reporting.document import Document
from curvlab.reporting.quiet import Quiet

MANIFEST = {"name": "run", "budget": {"epochs": None, "steps": 8, "seconds": None}}


class Terminal(io.StringIO):
    """Pretends to be one."""

    def isatty(self) -> bool:
        return True


def tell(reporter: Reporter, manifest: dict[str, Any] = MANIFEST) -> None:
    reporter.started(manifest)
    for step in range(1, 9):
        reporter.stepped(StepRecord(step, step / 4, 16 * step, 0.1 * step, 0.25, 0.01))
        if step % 4 == 0:
            reporter.evaluated(EvalRecord(step, 0.1 * step, {"val_loss": 0.125, "val_accuracy": 0.875}))
    reporter.happened(Event("rejected", 8, {}))
    reporter.finished({"steps": 8, "bad": float("nan")})


def on_terminal(monkeypatch: pytest.MonkeyPatch, manifest: dict[str, Any] = MANIFEST) -> tuple[str, str]:
    out, err = Terminal(), Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    tell(Console(updates_per_second=1000.0), manifest)
    return out.getvalue(), err.getvalue()


def test_without_a_terminal_each_evaluation_is_one_plain_line_on_stderr(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tell(Console())
    out, err = capsys.readouterr()
    assert out == ""
    metrics = "val_loss 0.125  val_accuracy 0.875"
    assert err == f"step 4  0.4 s  {metrics}\nstep 8  0.8 s  {metrics}\n"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_one_stream_that_is_no_terminal_is_enough_for_plain_lines(
    monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    streams = {"stdout": Terminal(), "stderr": Terminal()}
    streams[stream].isatty = lambda: False  # type: ignore[method-assign]
    for name, value in streams.items():
        monkeypatch.setattr(f"sys.{name}", value)
    tell(Console())
    assert streams["stdout"].getvalue() == ""
    assert "\x1b" not in streams["stderr"].getvalue()
    assert streams["stderr"].getvalue().count("\n") == 2


@pytest.mark.parametrize(
    ("unit", "total", "done"),
    [("steps", 8, "8/8 steps"), ("epochs", 2.0, "2.0/2 epochs"), ("seconds", 0.8, "0.8/0.8 seconds")],
)
def test_on_a_terminal_loss_metrics_rate_and_time_left_are_shown(
    monkeypatch: pytest.MonkeyPatch, unit: str, total: float, done: str
) -> None:
    budget = {"epochs": None, "steps": None, "seconds": None, unit: total}
    out, err = on_terminal(monkeypatch, {"name": "run", "budget": budget})
    assert out == ""
    for words in ("run", done, "loss 0.25", "val_accuracy 0.875", "it/s", "1 event", "0:00:00"):
        assert words in err, words


def test_no_color_is_honored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    _, err = on_terminal(monkeypatch)
    assert "\x1b[3" not in err, "colors"
    assert "loss" in err


def test_the_console_can_show_one_run_after_another(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    tell(console)
    tell(console)
    assert capsys.readouterr().err.count("\n") == 4


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Quiet())
    assert capsys.readouterr() == ("", "")


def test_the_document_is_one_json_document_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    tell(Document(sys.stdout))
    out, err = capsys.readouterr()
    assert json.loads(out) == {"steps": 8, "bad": None}
    assert err == ""


def test_settings_are_the_only_fields_that_can_be_given() -> None:
    assert [f.name for f in fields(Console) if f.init] == ["updates_per_second"]
    assert Console() == Console()
