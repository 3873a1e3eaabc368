"""What the reporters share: a sink that is opened when a run starts and closed when it ends."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import check_bounds
from curvlab.protocols.report import EvalRecord, Reporter, StepRecord


class Sink(ABC):
    """One run in a tracker."""

    @abstractmethod
    def log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Values at a step: ``kind`` is ``"step"`` or ``"eval"``; NaN and infinities are values, too."""

    @abstractmethod
    def close(self, summary: Mapping[str, Any]) -> None:
        """The run is over; ``summary`` is the content of its ``summary.json``."""


@dataclass(frozen=True)
class Tracker(Reporter):
    """A reporter that passes steps and evaluations on to a ``Sink``; a subclass writes ``open``."""

    _sinks: list[Sink] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_bounds(self)
        object.__setattr__(self, "_sinks", [])

    @abstractmethod
    def open(self, manifest: Mapping[str, Any]) -> Sink:
        """A sink for the run of this manifest, which may have been started before."""

    def started(self, manifest: Mapping[str, Any]) -> None:
        with _away_from_stdout():
            self._sinks[:] = [self.open(manifest)]

    def stepped(self, record: StepRecord) -> None:
        values = {name: float(value) for name, value in vars(record).items() if value is not None}
        del values["step"]
        self._log("step", record.step, values)

    def evaluated(self, record: EvalRecord) -> None:
        values = {name: float(value) for name, value in record.metrics.items()}
        self._log("eval", record.step, {"seconds": record.seconds, **values})

    def finished(self, summary: Mapping[str, Any]) -> None:
        with _away_from_stdout():
            for sink in self._sinks:
                sink.close(summary)
        self._sinks.clear()

    def _log(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        with _away_from_stdout():
            for sink in self._sinks:
                sink.log(kind, step, values)


#: what keeps libraries from reporting on their own use; a variable that the user has set stays as it is
_PRIVATE = {"MLFLOW_DISABLE_TELEMETRY": "true", "WANDB_ERROR_REPORTING": "false"}


def require(module: str, extra: str) -> None:
    """Import a library, without telemetry of its own; raises ``ConfigError`` that says how to get it."""
    for name, value in _PRIVATE.items():
        os.environ.setdefault(name, value)
    try:
        importlib.import_module(module)
    except ImportError as error:
        what = f"the reporter needs {module}, which cannot be imported ({error})"
        raise ConfigError(Fault(what, hint=f'run pip install "curvlab-trackers[{extra}]"')) from error


def settings(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved configuration of a run by dotted key; empty if the folder has no ``resolved.toml``."""
    path = Path(manifest["folder"]) / "resolved.toml"
    return _flat(tomli.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _flat(data: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(data, Mapping):
        return {path: data}
    found: dict[str, Any] = {}
    for key, value in data.items():
        found.update(_flat(value, f"{path}.{key}" if path else str(key)))
    return found


@contextlib.contextmanager
def _away_from_stdout() -> Iterator[None]:
    """Standard output is for results: what a library prints goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield
