"""Calls every reporter; one that raises is reported to the others, and the run goes on or stops."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from curvlab.errors import raised
from curvlab.protocols.report import EvalRecord, Event, Reporter, StepRecord, StopRun


@dataclass(frozen=True)
class Stop:
    """The request of a reporter to end the run: who asked, and why."""

    reporter: str
    reason: str

    def __str__(self) -> str:
        """``Pruner: val_loss is above the median``."""
        return f"{self.reporter}: {self.reason}" if self.reason else self.reporter


class Broadcast(Reporter):
    """The run's log first, then the reporters that the user chose.

    Events before ``open`` are reported afterwards.  An error of the log is the run's own and is
    raised; one of another reporter, ``SystemExit`` included, becomes the event ``reporter-failed``, and
    that reporter is not called again.  ``KeyboardInterrupt`` is the user's and is raised.

    ``stop`` is the first ``StopRun`` of a reporter; the loop reads it between steps.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.stop: Stop | None = None
        self._log: Reporter | None = None
        self._others: list[Reporter] = []
        self._early: list[Event] = []
        self._step = 0

    def open(self, log: Reporter, others: tuple[Reporter, ...], counts: dict[str, int]) -> None:
        """Start telling; ``counts`` is where events are counted by name."""
        self._log, self._others, self.counts = log, list(others), counts

    def started(self, manifest: Mapping[str, Any]) -> None:
        """Tells of the run, then of the events that came before it."""
        self._tell(lambda r: r.started(manifest))
        for event in self._early:
            self.happened(event)
        self._early.clear()

    def stepped(self, record: StepRecord) -> None:
        self._step = record.step
        self._tell(lambda r: r.stepped(record))

    def evaluated(self, record: EvalRecord) -> None:
        self._tell(lambda r: r.evaluated(record))

    def happened(self, event: Event) -> None:
        """Counts the event; before ``started`` it is kept until then."""
        if self._log is None:
            self._early.append(event)
            return
        self.counts[event.name] = self.counts.get(event.name, 0) + 1
        self._tell(lambda r: r.happened(event))

    def finished(self, summary: Mapping[str, Any]) -> None:
        # the log last: it closes its files, and the others may still fail
        self._tell_others(lambda r: r.finished(summary))
        if self._log is not None:
            self._log.finished(summary)

    def _tell(self, call: Callable[[Reporter], None]) -> None:
        if self._log is not None:
            call(self._log)
        self._tell_others(call)

    def _tell_others(self, call: Callable[[Reporter], None]) -> None:
        for reporter in tuple(self._others):
            try:
                call(reporter)
            except KeyboardInterrupt:
                raise
            except StopRun as request:
                self.stop = self.stop or Stop(type(reporter).__qualname__, str(request))
            except BaseException as error:  # a reporter may raise anything, SystemExit included
                self._others.remove(reporter)
                details = {"reporter": type(reporter).__qualname__, "error": raised(error)}
                self.happened(Event("reporter-failed", self._step, details))
