"""The console: live progress on a terminal, one plain line per evaluation elsewhere.

Everything goes to standard error; standard output is for results.
"""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from curvlab.errors import shortened
from curvlab.protocols.bounds import Positive, check_bounds
from curvlab.protocols.report import EvalRecord, Event, Reporter, StepRecord

#: events that are shown as a line, in whatever view, with their details in it
SHOWN = {
    "damaged-checkpoint": "checkpoint {fault}; the run goes on from {instead}",
    "unverified-checkpoint": "checkpoint {checkpoint} cannot be verified: {reason}",
}
#: characters of the live line: its bar, the time left, and a run's name at most; 80 leave room for the loss
BAR, TIME_LEFT, LONGEST_NAME = 10, 7, 18


@dataclass(frozen=True)
class Console(Reporter):
    """Shows a run on the terminal: loss, metrics, steps per second, time left.

    If standard output or standard error is not a terminal, nothing moves: each evaluation is one line.
    """

    updates_per_second: Positive = 4.0  #: how often the live display is drawn anew
    _views: list[View] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_bounds(self)
        object.__setattr__(self, "_views", [])

    def started(self, manifest: Mapping[str, Any]) -> None:
        watched = sys.stderr.isatty() and sys.stdout.isatty()
        self._views[:] = [Live(manifest, self.updates_per_second) if watched else Lines()]

    def stepped(self, record: StepRecord) -> None:
        for view in self._views:
            view.stepped(record)

    def evaluated(self, record: EvalRecord) -> None:
        for view in self._views:
            view.evaluated(record)

    def happened(self, event: Event) -> None:
        if event.name in SHOWN:
            print(f"warning: {SHOWN[event.name].format(**event.detail)}", file=sys.stderr, flush=True)
        for view in self._views:
            view.happened(event)

    def finished(self, summary: Mapping[str, Any]) -> None:
        for view in self._views:
            view.close()
        self._views.clear()


class View(ABC):
    """How one run is shown."""

    def stepped(self, record: StepRecord) -> None:
        """A step was logged."""
        return None

    @abstractmethod
    def evaluated(self, record: EvalRecord) -> None:
        """Metrics were computed."""

    def happened(self, event: Event) -> None:
        """Something noteworthy happened."""
        return None

    def close(self) -> None:
        """The run is over."""
        return None


class Lines(View):
    """One plain line per evaluation."""

    def evaluated(self, record: EvalRecord) -> None:
        line = f"step {record.step}  {record.seconds:.1f} s  {metrics_in_words(record.metrics)}"
        print(line, file=sys.stderr, flush=True)


class Live(View):
    """One line that is drawn anew: bar, loss, metrics, steps per second, time left."""

    def __init__(self, manifest: Mapping[str, Any], updates_per_second: float) -> None:
        # imported here: rich's progress takes longer to import than a listing may take
        from rich.console import Console as Terminal
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        budget = manifest["budget"]
        self._unit = next(unit for unit in ("epochs", "steps", "seconds") if budget.get(unit) is not None)
        self._loss = self._rate = ""
        self._metrics: Mapping[str, float] = {}
        self._events = 0
        self._last: tuple[int, float] | None = None
        self._terminal = Terminal(file=sys.stderr)
        self._name = shortened(manifest["name"], LONGEST_NAME)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=BAR),
            TextColumn("{task.fields[done]}"),
            TextColumn("{task.fields[facts]}"),
            TimeRemainingColumn(),
            console=self._terminal,
            refresh_per_second=updates_per_second,
            transient=True,
        )
        self._task = self._progress.add_task(
            self._name, total=float(budget[self._unit]), done="", facts="starting"
        )
        self._progress.start()

    def stepped(self, record: StepRecord) -> None:
        self._loss = f"loss {record.loss:.4g}"
        now = time.perf_counter()
        if self._last is not None and now > self._last[1]:
            self._rate = f"{(record.step - self._last[0]) / (now - self._last[1]):.1f} it/s"
        self._last = (record.step, now)
        done = {"epochs": record.epoch, "steps": float(record.step), "seconds": record.seconds}[self._unit]
        total = self._progress.tasks[0].total or 0.0
        short = f"{done:.0f}" if self._unit == "steps" else f"{done:.1f}"
        self._progress.update(self._task, completed=done, done=f"{short}/{total:g} {self._unit}")
        self._describe()

    def evaluated(self, record: EvalRecord) -> None:
        self._metrics = record.metrics
        self._last = None  # the time of an evaluation says nothing about the rate of steps
        self._describe()

    def happened(self, event: Event) -> None:
        self._events += 1
        self._describe()

    def close(self) -> None:
        self._progress.stop()

    def _describe(self) -> None:
        events = f"{self._events} event{'s' * (self._events != 1)}" if self._events else ""
        metrics = [metrics_in_words({name: value}) for name, value in self._metrics.items()]
        taken = len(self._name) + BAR + len(self._progress.tasks[0].fields["done"]) + TIME_LEFT + 4
        words = [word for word in (self._loss, *metrics, events, self._rate) if word]
        self._progress.update(self._task, facts=as_many_as_fit(words, self._terminal.width - taken))


def as_many_as_fit(words: Sequence[str], width: int) -> str:
    """The first of ``words`` that fit into ``width`` characters, two spaces apart: no number is cut off."""
    facts = ""
    for word in words:
        longer = f"{facts}  {word}" if facts else word
        if len(longer) > width:
            break
        facts = longer
    return facts


def metrics_in_words(metrics: Mapping[str, float]) -> str:
    """``val_loss 0.1234  val_accuracy 0.9722``."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
