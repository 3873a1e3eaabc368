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
from curvlab.engine.training import prepare
from curvlab.protocols.report import Event, Reporter, StepRecord
from tests.engine.small_run import PLAIN, small_plan


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
