"""Writing a run's folder: ``manifest.json``, ``metrics.jsonl``, ``events.jsonl``, ``summary.json``.

Lines are appended, one write each, so that a kill tears the last one at worst.  The only rewriting
is on resume: lines of steps that will be taken again are cut off, in one move.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Any

from curvlab.protocols.report import EvalRecord, Event, Reporter, StepRecord
from curvlab.reporting.document import as_json
from curvlab.reporting.rundir import EVENTS, MANIFEST, METRICS, SUMMARY, RunDir

#: fields of a step line that are there whether or not the method has such a thing
ALWAYS = frozenset({"step", "epoch", "examples", "seconds", "loss", "lr", "damping"})
#: manifest entries that need not be the same when a run goes on, but should be known to have changed
COMPARED = ("curvlab", "torch", "python", "platform", "plugins", "parts", "device", "threads", "git")


class RunLog(Reporter):
    """The reporter that keeps a run's folder.

    A new run gives the folder alone.  A resumed one says after which ``step`` it goes on, and which was
    the last step ``evaluated`` by then: later lines are superseded and cut off; the event ``resumed`` says
    how many.  Numbers that are not finite are written as ``null``, which every JSON reader takes.
    """

    def __init__(self, folder: Path, step: int | None = None, evaluated: int = 0) -> None:
        self.folder = folder
        self._resumed_at = step
        self._superseded = 0
        if step is not None:
            # a run that was stopped has a summary; while it goes on, it has none
            (folder / SUMMARY).unlink(missing_ok=True)
            self._superseded = cut(folder / METRICS, lambda line: _is_before(line, step, evaluated))
            cut(folder / EVENTS, lambda line: True)
        self._metrics = FileIO(folder / METRICS, "a")
        self._events = FileIO(folder / EVENTS, "a")

    def started(self, manifest: Mapping[str, Any]) -> None:
        before = RunDir(self.folder).manifest
        if not before:
            _replace(self.folder / MANIFEST, as_json(manifest, indent=2))
        if self._resumed_at is not None:
            changed = {k: manifest.get(k) for k in COMPARED if before and manifest.get(k) != before.get(k)}
            detail = {"superseded_lines": self._superseded, "changed": changed, "argv": manifest.get("argv")}
            self.happened(Event("resumed", self._resumed_at, detail))

    def stepped(self, record: StepRecord) -> None:
        known = {k: v for k, v in vars(record).items() if v is not None or k in ALWAYS}
        self._append(self._metrics, {"kind": "step", **known})

    def evaluated(self, record: EvalRecord) -> None:
        line = {"kind": "eval", "step": record.step, "seconds": record.seconds, **record.metrics}
        self._append(self._metrics, line)
        os.fsync(self._metrics.fileno())  # rare, and the lines that a checkpoint of this step counts on

    def happened(self, event: Event) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._append(self._events, {**asdict(event), "time": now})

    def finished(self, summary: Mapping[str, Any]) -> None:
        _replace(self.folder / SUMMARY, as_json(summary, indent=2))
        self._metrics.close()
        self._events.close()

    def _append(self, file: FileIO, line: Mapping[str, Any]) -> None:
        data = (as_json(line) + "\n").encode()
        while data:  # a full disk takes part of a line; the next write raises
            data = data[file.write(data) :]


def cut(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Drop the lines of a ``.jsonl`` file that ``keep`` refuses, and a torn last one; how many were dropped.

    The file is replaced in one move, or not touched when nothing is to be dropped.
    """
    if not path.exists():
        return 0
    data = path.read_bytes()
    lines = data.splitlines(keepends=True)
    kept = [line for line in lines if line.endswith(b"\n") and keep(json.loads(line))]
    if len(kept) < len(lines):
        _replace(path, b"".join(kept).decode())
    return len(lines) - len(kept)


def _is_before(line: Mapping[str, Any], step: int, evaluated: int) -> bool:
    return bool(line["step"] <= (evaluated if line["kind"] == "eval" else step))


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text if text.endswith("\n") or not text else text + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
