"""Writing a run's folder: ``manifest.json``, ``metrics.jsonl``, ``events.jsonl``, ``summary.json``.

Lines are appended, one write each, so that a kill tears the last one at worst.  The only rewriting
is on resume: lines of steps that will be taken again are cut off, in one move.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from typing import Any

from curvlab.errors import RunFolderError
from curvlab.files import parsed_object, reading, require_unmoved, write_atomically, writing
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

    Everything raises ``RunFolderError`` for a file that cannot be written, is damaged, or is not in its place
    any more.  A resumed run reads every file before it changes one.
    """

    def __init__(self, folder: Path, step: int | None = None, evaluated: int = 0) -> None:
        self.folder = folder
        self._resumed_at = step
        self._superseded = 0
        self._before = RunDir(folder).manifest
        if step is not None:
            whole_lines(folder / EVENTS)  # so that damage in it is found before metrics are cut
            self._superseded = cut(folder / METRICS, lambda line: _is_before(line, step, evaluated))
            cut(folder / EVENTS, lambda line: True)
            # a run that was stopped has a summary; while it goes on, it has none
            with writing(folder / SUMMARY):
                (folder / SUMMARY).unlink(missing_ok=True)
        self._files: dict[str, FileIO] = {}

    def started(self, manifest: Mapping[str, Any]) -> None:
        before = self._before
        if not before:
            write_atomically(self.folder / MANIFEST, as_json(manifest, indent=2) + "\n")
        for name in (METRICS, EVENTS):
            with writing(self.folder / name):
                self._files[name] = FileIO(self.folder / name, "a")
        if self._resumed_at is not None:
            changed = {k: manifest.get(k) for k in COMPARED if before and manifest.get(k) != before.get(k)}
            detail = {"superseded_lines": self._superseded, "changed": changed, "argv": manifest.get("argv")}
            self.happened(Event("resumed", self._resumed_at, detail))

    def stepped(self, record: StepRecord) -> None:
        known = {k: v for k, v in vars(record).items() if v is not None or k in ALWAYS}
        self._append(METRICS, {"kind": "step", **known})

    def evaluated(self, record: EvalRecord) -> None:
        line = {"kind": "eval", "step": record.step, "seconds": record.seconds, **record.metrics}
        self._append(METRICS, line)
        with writing(self.folder / METRICS):
            os.fsync(
                self._files[METRICS].fileno()
            )  # rare, and the lines that a checkpoint of this step counts on

    def happened(self, event: Event) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self._append(EVENTS, {**asdict(event), "time": now})

    def finished(self, summary: Mapping[str, Any]) -> None:
        try:
            for name, file in self._files.items():
                require_unmoved(file.fileno(), self.folder / name)
            write_atomically(self.folder / SUMMARY, as_json(summary, indent=2) + "\n")
        finally:
            for file in self._files.values():
                file.close()

    def _append(self, name: str, line: Mapping[str, Any]) -> None:
        file, path = self._files[name], self.folder / name
        require_unmoved(file.fileno(), path)
        data = (as_json(line) + "\n").encode()
        with writing(path):
            while data:  # a full disk takes part of a line; the next write raises
                data = data[file.write(data) :]


def cut(path: Path, keep: Callable[[dict[str, Any]], bool]) -> int:
    """Drop the lines of a ``.jsonl`` file that ``keep`` refuses, and a torn last one; how many were dropped.

    The file is replaced in one move, or not touched when nothing is to be dropped.  Raises
    ``RunFolderError`` naming a line that is damaged.
    """
    lines, torn = whole_lines(path)
    kept = [line for number, line in enumerate(lines, start=1) if _kept(path, number, line, keep)]
    dropped = len(lines) - len(kept) + torn
    if dropped:
        write_atomically(path, b"".join(line + b"\n" for line in kept).decode())
    return dropped


def whole_lines(path: Path) -> tuple[list[bytes], bool]:
    """The lines of a ``.jsonl`` file, each a JSON object, and whether a torn one follows.

    Raises ``RunFolderError`` naming a line that is damaged.
    """
    with reading(path):
        *lines, rest = path.read_bytes().split(b"\n") if path.exists() else [b""]
    for number, line in enumerate(lines, start=1):
        _kept(path, number, line, lambda line: True)
    return lines, bool(rest)


def _kept(path: Path, number: int, line: bytes, keep: Callable[[dict[str, Any]], bool]) -> bool:
    try:
        return keep(parsed_object(line))
    except ValueError as error:
        where = f"{path}:{number}"
        raise RunFolderError(f"{where}: the line is damaged: {error}; delete it and resume again") from error


def _is_before(line: Mapping[str, Any], step: int, evaluated: int) -> bool:
    at, kind = line.get("step"), line.get("kind")
    if not isinstance(at, int) or kind not in ("step", "eval"):
        raise ValueError('expected "kind" to be "step" or "eval", and "step" to be a whole number')
    return at <= (evaluated if kind == "eval" else step)
