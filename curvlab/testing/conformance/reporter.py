"""The suite of reporters."""

from __future__ import annotations

import contextlib
import io
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from curvlab.protocols.report import EvalRecord, Event, Reporter, StepRecord
from curvlab.testing.conformance.check import check
from curvlab.testing.conformance.suite import Conformance
from curvlab.testing.surroundings import Surroundings

#: the keys of a run's ``manifest.json`` and ``summary.json``, all of them
MANIFEST: Mapping[str, Any] = {
    "name": "a run",
    "folder": "runs/a-run-20240229T120000-0123abcd",
    "started": "2024-02-29T12:00:00+00:00",
    "argv": ["curvlab", "train", "a.toml"],
    "curvlab": "0.1.0",
    "torch": "2.13.0",
    "python": "3.11.7",
    "plugins": {"curvlab-kfac": "0.1.0"},
    "platform": "Linux-6.1-x86_64",
    "machine": "x86_64",
    "processor": "a processor",
    "cores": 2,
    "threads": 1,
    "executable": "/usr/bin/python3",
    "git": None,
    "processes": 1,
    "parts": {"task/digits": "curvlab 0.1.0"},
    "device": "cpu",
    "dtype": "float32",
    "seed": 0,
    "method": "kfac",
    "task": "digits",
    "budget": {"epochs": None, "steps": 10, "seconds": None},
    "examples": 1437,
    "batch_size": 128,
    "judged_by": {"metric": "val_accuracy", "more_is_better": True},
    "parameters": 6410,
    "trained": 6410,
    "state_bytes": 51280,
    "coverage": [],
}
SUMMARY: Mapping[str, Any] = {
    "name": "a run",
    "folder": "runs/a-run-20240229T120000-0123abcd",
    "method": "kfac",
    "exit_reason": "finished",
    "exit_code": 0,
    "message": "",
    "metrics": {"val_loss": 0.1},
    "metrics_step": 10,
    "best": {"metric": "val_loss", "value": 0.1, "step": 10},
    "steps": 10,
    "epochs": 0.9,
    "examples": 1280,
    "seconds": 1.5,
    "events": {"more-damping": 1},
    "checkpoint": "checkpoints/step-00000010",
}

#: that of a run that failed before its first step
FAILED: Mapping[str, Any] = {
    **SUMMARY,
    "exit_reason": "failed",
    "exit_code": 1,
    "message": "a reason",
    "metrics": {},
    "metrics_step": 0,
    "best": None,
    "steps": 0,
    "epochs": 0.0,
    "examples": 0,
    "seconds": 0.0,
    "events": {},
    "checkpoint": None,
}

FULL = StepRecord(
    step=1,
    epoch=0.1,
    examples=32,
    seconds=0.01,
    loss=2.3,
    lr=0.1,
    damping=0.01,
    cg_iterations=3,
    products=4,
    product_examples=128,
    reduction_ratio=0.9,
    accepted=True,
    gradient_size=32,
    curvature_size=8,
)
BARE = StepRecord(step=2, epoch=0.2, examples=64, seconds=0.02, loss=math.nan, lr=0.0)
METRICS = EvalRecord(2, 0.02, {"val_loss": math.inf, "val_accuracy": 0.5})
EVENT = Event("more-damping", 1, {"reason": "a word", "damping": 0.1, "block": None})


class _Placed(Reporter):
    """Another reporter, in a run whose folder is elsewhere."""

    def __init__(self, part: Reporter, folder: Path) -> None:
        self.part, self.folder = part, folder

    def started(self, manifest: Mapping[str, Any]) -> None:
        self.part.started({**manifest, "folder": str(self.folder)})

    def stepped(self, record: StepRecord) -> None:
        self.part.stepped(record)

    def evaluated(self, record: EvalRecord) -> None:
        self.part.evaluated(record)

    def happened(self, event: Event) -> None:
        self.part.happened(event)

    def finished(self, summary: Mapping[str, Any]) -> None:
        self.part.finished({**summary, "folder": str(self.folder)})


class ReporterConformance(Conformance):
    """A listener: nothing that a run tells it makes it raise, and it keeps off standard output."""

    kind = "reporter"
    part: Reporter

    def told(self, *calls: Callable[[Reporter], None]) -> tuple[str, str]:
        """What it prints on standard output and standard error during these calls.

        The run's folder is an empty one in a folder of its own, and gone afterwards.
        """
        out, err = io.StringIO(), io.StringIO()
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, Path(MANIFEST["folder"]).name)
            folder.mkdir()
            placed = _Placed(self.part, folder)
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                for call in calls:
                    call(placed)
        return out.getvalue(), err.getvalue()

    @check()
    def check_run(self) -> None:
        """A run from start to end, twice: a reporter serves one run after another."""
        for _ in range(2):
            self.told(_started, _stepped, _happened, _evaluated, _finished)

    @check()
    def check_odd_values(self) -> None:
        """Values that are not finite, missing facts and no metrics at all are reported like any other."""
        nothing = EvalRecord(3, 0.0, {})
        self.told(
            _started,
            lambda r: r.stepped(BARE),
            lambda r: r.evaluated(METRICS),
            lambda r: r.evaluated(nothing),
            lambda r: r.happened(Event("rejected", 0, {})),
            _finished,
        )

    @check()
    def check_budgets(self) -> None:
        """A run may be of epochs, steps or seconds."""
        for unit in ("epochs", "steps", "seconds"):
            budget = {"epochs": None, "steps": None, "seconds": None, unit: 3}
            self.told(lambda r, b=budget: r.started({**MANIFEST, "budget": b}), _stepped, _finished)  # type: ignore[misc]

    @check()
    def check_early_end(self) -> None:
        """A run that ends before its first step, or that never began, is finished all the same."""
        self.told(_started, lambda r: r.finished(FAILED))
        self.told(lambda r: r.finished(FAILED))

    @check()
    def check_standard_output(self) -> None:
        """Nothing goes to standard output: that is for results."""
        out, _ = self.told(_started, _stepped, _happened, _evaluated, _finished)
        assert not out, f"{type(self.part).__name__} prints on standard output: {out.splitlines()[0]!r}"

    @check()
    def check_random_state(self) -> None:
        """Listening draws from no global generator, and changes no mode of torch."""
        before = Surroundings.now()
        self.told(_started, _stepped, _happened, _evaluated, _finished)
        changed = before.random_changes() + before.mode_changes()
        assert not changed, f"{type(self.part).__name__} changes {', '.join(changed)}"


def _started(r: Reporter) -> None:
    r.started(MANIFEST)


def _stepped(r: Reporter) -> None:
    r.stepped(FULL)


def _happened(r: Reporter) -> None:
    r.happened(EVENT)


def _evaluated(r: Reporter) -> None:
    r.evaluated(METRICS)


def _finished(r: Reporter) -> None:
    r.finished(SUMMARY)
