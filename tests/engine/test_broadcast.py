"""Telling reporters: the log must hear, the others may fail."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from curvlab.engine.broadcast import Broadcast
from curvlab.engine.interrupts import Interrupts
from curvlab.engine.loop import training_loop
from curvlab.engine.run import train_plan
from curvlab.engine.training import prepare
from curvlab.protocols.report import EvalRecord, Event, Reporter, StepRecord, StopRun
from curvlab.reporting.rundir import RunDir
from curvlab.reporting.runlog import RunLog
from tests.engine.small_run import PLAIN, same, small_plan


class Diary(Reporter):
    """Writes down what happened, and when it was told that the run is over."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.order: list[str] = []

    def happened(self, event: Event) -> None:
        self.events.append(event)

    def finished(self, summary: Mapping[str, Any]) -> None:
        self.order.append("log")


class Failing(Reporter):
    def stepped(self, record: StepRecord) -> None:
        raise ValueError("somebody else's bug")

    def finished(self, summary: Mapping[str, Any]) -> None:
        raise AssertionError("a reporter that failed is not called again")


def test_a_reporter_that_raises_becomes_one_event_and_the_run_goes_on() -> None:
    torch.manual_seed(0)
    diary, tell = Diary(), Broadcast()
    training = prepare(small_plan(PLAIN, steps=9, log_every=1), tell.happened)
    tell.open(diary, (Failing(),), training.progress.events)
    training_loop(training, tell, Interrupts(), lambda: Path("step"))
    tell.finished({})
    assert training.progress.step == 9
    assert [(e.name, e.step) for e in diary.events] == [("reporter-failed", 1)]
    error = diary.events[0].detail["error"]
    assert diary.events[0].detail["reporter"] == "Failing"
    assert error.startswith(f"ValueError: somebody else's bug ({__file__}:")
    assert training.progress.events == {"reporter-failed": 1}


class StopsAt(Reporter):
    def __init__(self, step: int) -> None:
        self.step, self.finals = step, list[Mapping[str, Any]]()

    def stepped(self, record: StepRecord) -> None:
        if record.step == self.step:
            raise StopRun("it is enough")

    def evaluated(self, record: EvalRecord) -> None:
        if record.step == self.step:
            raise StopRun("too late to be the reason")

    def finished(self, summary: Mapping[str, Any]) -> None:
        self.finals.append(summary)


def test_a_reporter_may_end_the_run_which_keeps_a_checkpoint_and_can_go_on(tmp_path: Path) -> None:
    plan = small_plan(PLAIN, steps=9, log_every=1, eval_every=4)
    stopping, hearing = StopsAt(4), StopsAt(99)
    run = train_plan(plan, out=tmp_path, log=RunLog, listeners=(stopping, hearing))
    assert (run.summary["exit_reason"], run.summary["exit_code"], run.summary["steps"]) == ("stopped", 0, 4)
    assert run.summary["message"] == "stopped by the reporter StopsAt: it is enough"
    assert run.summary["checkpoint"] == "checkpoints/step-00000004"
    assert [one["step"] for one in run.metrics("step")] == [1, 2, 3, 4]
    assert stopping.finals == hearing.finals == [run.summary]
    (event,) = RunDir(run.folder).events()
    assert (event["name"], event["step"], event["detail"]["reporter"]) == ("stopped", 4, "StopsAt")
    resumed = train_plan(plan, out=tmp_path, log=RunLog, resume_from=run.folder)
    whole = train_plan(plan, out=tmp_path / "whole", log=RunLog)
    assert resumed.summary["exit_reason"] == "finished"
    same(resumed, whole)


@pytest.mark.parametrize("step", [0, 9])
def test_a_stop_before_the_first_step_or_at_the_last(step: int, tmp_path: Path) -> None:
    class Early(StopsAt):
        def started(self, manifest: Mapping[str, Any]) -> None:
            if self.step == 0:
                raise StopRun

    run = train_plan(
        small_plan(PLAIN, steps=9, log_every=1), out=tmp_path, log=RunLog, listeners=(Early(step),)
    )
    assert (run.summary["steps"], run.summary["exit_reason"]) == (step, "finished" if step else "stopped")


def test_an_error_of_the_log_itself_ends_the_run() -> None:
    tell = Broadcast()
    tell.open(Failing(), (), {})
    with pytest.raises(ValueError, match="somebody else's bug"):
        tell.stepped(StepRecord(1, 0.1, 1, 0.1, 1.0, 0.1))


def test_events_from_before_the_log_is_open_are_not_lost() -> None:
    diary, tell, counts = Diary(), Broadcast(), dict[str, int]()
    tell.happened(Event("early", 0, {}))
    tell.open(diary, (), counts)
    tell.started({})
    assert [e.name for e in diary.events] == ["early"]
    assert counts == {"early": 1}


def test_the_log_is_told_last_that_the_run_is_over_because_it_closes_its_files() -> None:
    diary, tell = Diary(), Broadcast()

    class Last(Reporter):
        def finished(self, summary: Mapping[str, Any]) -> None:
            diary.order.append("other")
            raise ValueError("too late")

    tell.open(diary, (Last(),), {})
    tell.finished({})
    assert diary.order == ["other", "log"]
    assert [e.name for e in diary.events] == ["reporter-failed"]
