"""Event files for TensorBoard."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curvlab.files import read_lines
from curvlab_trackers.tracker import Sink, Tracker, require


@dataclass(frozen=True)
class TensorBoard(Tracker):
    """Scalars over steps, named as in ``metrics.jsonl``: ``loss``, ``lr``, ``val_loss``, ….

    ``tensorboard --logdir runs`` shows all runs below ``runs``.  A resumed run adds a file, and its values
    replace those of steps that are taken again.
    """

    folder: str = "tensorboard"  #: where the files go; relative to the run's folder

    def __post_init__(self) -> None:
        super().__post_init__()
        require("tensorboard.summary.writer.event_file_writer", "tensorboard")

    def open(self, manifest: Mapping[str, Any]) -> Sink:
        run = Path(manifest["folder"])
        done = [line["step"] for line in read_lines(run / "metrics.jsonl")]
        return _Events(run / self.folder, max(done, default=0) + 1)


class _Events(Sink):
    def __init__(self, folder: Path, first: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder))
        start = SessionLog(status=SessionLog.START)  # later steps of earlier files do not count any more
        self._writer.add_event(Event(wall_time=time.time(), step=first, session_log=start))

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        seen = {name: value for name, value in values.items() if not (kind == "eval" and name == "seconds")}
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in seen.items()]
        self._writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))
        if kind == "eval":
            self._writer.flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        self._writer.close()
