"""Steps and evaluations as comma-separated values."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from curvlab.errors import CurvlabError
from curvlab.files import read_lines, writing
from curvlab.protocols.report import StepFacts, StepRecord
from curvlab_trackers.tracker import Sink, Tracker

_FACTS = [f.name for f in fields(StepFacts)]
#: the columns of ``steps.csv``: where a step is in its run, and its facts
STEPS = [*(f.name for f in fields(StepRecord) if f.name not in _FACTS), *_FACTS]


@dataclass(frozen=True)
class CommaSeparated(Tracker):
    """``steps.csv`` and ``evaluations.csv``, each with a line of names first.

    ``steps.csv`` has a column for every fact that a step may have, empty where the method has none.
    Truth values are 1 and 0, values that are not finite ``nan`` and ``inf``.  When a run is resumed, both
    files are written anew from ``metrics.jsonl``, so steps that are taken again stand there once.
    """

    folder: str = "."  #: where the files go; relative to the run's folder

    def open(self, manifest: Mapping[str, Any]) -> Sink:
        run = Path(manifest["folder"])
        sink = _Files(run / self.folder)
        for line in read_lines(run / "metrics.jsonl"):
            values = {name: value for name, value in line.items() if name not in ("kind", "step")}
            sink.log(line["kind"], line["step"], {k: _number(v) for k, v in values.items()})
        return sink


class _Files(Sink):
    """The two files; that of evaluations begins with the first one, which has the names."""

    def __init__(self, folder: Path) -> None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._paths = {"step": folder / "steps.csv", "eval": folder / "evaluations.csv"}
        self._files: dict[str, TextIO] = {}
        self._columns: dict[str, Sequence[str]] = {}
        for path in self._paths.values():
            with writing(path):
                path.unlink(missing_ok=True)
        self._begin("step", STEPS)

    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **values}
        if kind not in self._columns:
            self._begin(kind, list(row))
        unknown = sorted(set(row) - set(self._columns[kind]))
        if unknown:
            known = ", ".join(self._columns[kind])
            raise CurvlabError(
                f"{self._paths[kind]}: step {step} has values that the first line has no column for: "
                f"{', '.join(unknown)}; its columns are {known}"
            )
        with writing(self._paths[kind]):
            self._writer(kind).writerow(row)
            self._files[kind].flush()

    def close(self, summary: Mapping[str, Any]) -> None:
        for kind, file in self._files.items():
            with writing(self._paths[kind]):
                file.close()

    def _begin(self, kind: str, columns: Sequence[str]) -> None:
        path = self._paths[kind]
        with writing(path):
            self._files[kind] = path.open("w", encoding="utf-8", newline="")
            self._columns[kind] = columns
            self._writer(kind).writeheader()

    def _writer(self, kind: str) -> csv.DictWriter[str]:
        return csv.DictWriter(self._files[kind], self._columns[kind], lineterminator="\n")


def _number(value: Any) -> float:
    """A value of ``metrics.jsonl``, where ``null`` stands for what was not finite."""
    return float("nan") if value is None else float(value)
