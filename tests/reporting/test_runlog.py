"""The run's log: one whole line per record, nothing lost, each step once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from curvlab.protocols.report import EvalRecord, Event, StepRecord
from curvlab.reporting.rundir import RunDir
from curvlab.reporting.runlog import RunLog, cut


def record(step: int, **more: Any) -> StepRecord:
    return StepRecord(step, step / 4, 16 * step, 0.1 * step, 1.0 / step, 0.01, **more)


def strict(text: str) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_step_line_holds_the_promised_keys_and_what_the_method_has(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.started({})
    log.stepped(record(1))
    log.stepped(record(2, damping=0.5, cg_iterations=3, accepted=False))
    first, second = (strict(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())
    promised = {"kind", "step", "epoch", "examples", "seconds", "loss", "lr", "damping"}
    assert set(first) == promised
    assert first["damping"] is None
    assert set(second) == promised | {"cg_iterations", "accepted"}
    assert (second["kind"], second["cg_iterations"], second["accepted"]) == ("step", 3, False)
    log.finished({})


def test_numbers_are_written_so_that_they_read_back_as_the_same_bits(tmp_path: Path) -> None:
    loss, value = 0.1 + 0.2, 1 / 3
    log = RunLog(tmp_path)
    log.started({})
    log.stepped(StepRecord(1, value, 1, value, loss, 1e-300))
    log.evaluated(EvalRecord(1, value, {"val_loss": loss}))
    log.finished({"x": loss})
    run = RunDir(tmp_path)
    assert run.steps()[0]["loss"] == loss
    assert run.steps()[0]["lr"] == 1e-300
    assert run.evaluations()[0]["val_loss"] == loss
    assert run.summary == {"x": loss}


def test_what_is_not_finite_is_null_because_json_has_no_word_for_it(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.started({})
    log.evaluated(EvalRecord(1, 0.0, {"val_loss": float("nan"), "val_x": float("-inf")}))
    log.happened(Event("e", 1, {"ratio": float("inf"), "list": [float("nan")], "path": Path("x")}))
    log.finished({"metrics": {"val_loss": float("nan")}})
    assert strict((tmp_path / "metrics.jsonl").read_text())["val_loss"] is None
    event = strict((tmp_path / "events.jsonl").read_text())
    assert event["detail"] == {"ratio": None, "list": [None], "path": "x"}
    assert strict((tmp_path / "summary.json").read_text()) == {"metrics": {"val_loss": None}}


def test_each_line_is_on_the_disk_before_the_next_step(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.started({})
    for step in range(1, 4):
        log.stepped(record(step))
        assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == step
    log.finished({})


def resumed_log(folder: Path, step: int, evaluated: int) -> None:
    log = RunLog(folder, step, evaluated)
    log.started({"torch": "2", "threads": 1})
    log.finished({})


def written(folder: Path) -> None:
    log = RunLog(folder)
    log.started({"torch": "1", "threads": 1})
    for step in range(1, 7):
        log.stepped(record(step))
        if step % 2 == 0:
            log.evaluated(EvalRecord(step, 0.1 * step, {"val_loss": float(step)}))
    log.happened(Event("signal", 6, {}))
    log.finished({"exit_reason": "sigterm"})


@pytest.mark.parametrize(
    ("step", "evaluated", "steps", "evaluations"),
    [
        (4, 4, [1, 2, 3, 4], [2, 4]),
        (4, 2, [1, 2, 3, 4], [2]),
        (0, 0, [], []),
        (6, 6, [1, 2, 3, 4, 5, 6], [2, 4, 6]),
    ],
)
def test_a_resumed_log_keeps_what_the_checkpoint_knows_of_and_nothing_later(
    tmp_path: Path, step: int, evaluated: int, steps: list[int], evaluations: list[int]
) -> None:
    written(tmp_path)
    resumed_log(tmp_path, step, evaluated)
    run = RunDir(tmp_path)
    assert [line["step"] for line in run.steps()] == steps
    assert [line["step"] for line in run.evaluations()] == evaluations
    signal, resumed = run.events()
    assert signal["name"] == "signal", "events are never cut off"
    assert (resumed["name"], resumed["step"]) == ("resumed", step)
    assert resumed["detail"]["superseded_lines"] == 9 - len(steps) - len(evaluations)
    assert resumed["detail"]["changed"] == {"torch": "2"}
    assert run.manifest == {"torch": "1", "threads": 1}, "the manifest is of the start"


def test_while_a_stopped_run_goes_on_it_has_no_summary(tmp_path: Path) -> None:
    written(tmp_path)
    log = RunLog(tmp_path, 6, 6)
    assert RunDir(tmp_path).summary == {}
    log.finished({"exit_reason": "finished"})
    assert RunDir(tmp_path).finished


@pytest.mark.parametrize(
    "torn", [b"", b"{", b'{"kind": "step", "step": 7, "loss": 0.1', b'{"kind": "step"\xc3']
)
def test_a_torn_last_line_is_cut_off_and_the_next_line_stands_alone(tmp_path: Path, torn: bytes) -> None:
    written(tmp_path)
    for name in ("metrics.jsonl", "events.jsonl"):
        with (tmp_path / name).open("ab") as file:
            file.write(torn)
    assert len(RunDir(tmp_path).steps()) == 6, "readers pass it over"
    log = RunLog(tmp_path, 6, 6)
    log.started({"torch": "1", "threads": 1})
    log.stepped(record(7))
    log.finished({})
    assert [line["step"] for line in RunDir(tmp_path).steps()] == [1, 2, 3, 4, 5, 6, 7]
    assert [event["name"] for event in RunDir(tmp_path).events()] == ["signal", "resumed"]


def test_a_file_from_which_nothing_is_cut_is_not_touched(tmp_path: Path) -> None:
    written(tmp_path)
    before = (tmp_path / "metrics.jsonl").stat()
    assert cut(tmp_path / "metrics.jsonl", lambda line: True) == 0
    after = (tmp_path / "metrics.jsonl").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_kill_before_the_manifest_was_written_is_made_good_on_resume(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0, 0)
    log.started({"torch": "1"})
    log.finished({})
    assert RunDir(tmp_path).manifest == {"torch": "1"}
    (event,) = RunDir(tmp_path).events()
    assert event["detail"]["changed"] == {}
