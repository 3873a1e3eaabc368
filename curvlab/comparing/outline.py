"""One run as its small files describe it, whatever state its folder is in; metrics are not read."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from curvlab.errors import CurvlabError, RunFolderError
from curvlab.files import reading
from curvlab.reporting.rundir import CONFIG, METRICS, RESOLVED, RunDir, judged_by

#: states of runs that have no ``summary.json``, and of folders that cannot be read
RUNNING, UNFINISHED, DAMAGED = "running", "unfinished", "damaged"


@dataclass(frozen=True, eq=False)
class Outline:
    """A run without its metrics.

    ``state`` is the reason of its end (``finished``, ``diverged``, ``failed``, the name of a signal),
    ``running``, ``unfinished`` for a run that was killed, or ``damaged``; ``trouble`` says what is wrong.
    ``given`` and ``resolved`` are its configuration as the user gave it and with everything spelled out.
    """

    path: Path
    state: str
    trouble: str = ""
    manifest: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)
    resolved: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.path.resolve().name

    @property
    def method(self) -> str:
        """The method by name; ``composition`` if the configuration names none."""
        return str(self.manifest.get("method") or _use(self.resolved, "method") or "composition")

    @property
    def task(self) -> str:
        """The task by name."""
        return str(self.manifest.get("task") or _use(self.resolved, "task") or "unknown")

    @property
    def seed(self) -> Any:
        """The seed, ``None`` if the folder does not say."""
        run = self.resolved.get("run")
        return self.manifest.get("seed", run.get("seed") if isinstance(run, Mapping) else None)

    @property
    def judged_by(self) -> tuple[str, bool]:
        """The metric that the task is judged by, and whether more of it is better."""
        return judged_by(self.manifest)


def outline(path: Path) -> Outline:
    """What the small files in the folder at ``path`` say; never raises for what is wrong with them."""
    try:
        run = RunDir(path)
        if not path.is_dir():
            raise RunFolderError("it is not a folder")
        if not (path / RESOLVED).is_file():
            raise RunFolderError("it has no resolved.toml, so it is not a run's folder or is damaged")
        manifest, summary = run.manifest, run.summary
        given, resolved = _toml(path / CONFIG), _toml(path / RESOLVED)
        state, trouble = _state(run, summary)
    except CurvlabError as error:
        return Outline(path, DAMAGED, str(error))
    except OSError as error:
        return Outline(path, DAMAGED, f"it cannot be read: {error.strerror or error}")
    return Outline(path, state, trouble, manifest, summary, given, resolved)


def _state(run: RunDir, summary: Mapping[str, Any]) -> tuple[str, str]:
    if summary:
        reason = str(summary.get("exit_reason"))
        return reason, "" if reason == "finished" else str(summary.get("message", ""))
    if run.in_use():
        return RUNNING, "it is still training"
    return UNFINISHED, f"it ended without summary.json; continue it with `curvlab resume {run.path}`"


def runs_below(folder: Path) -> Iterator[Path]:
    """The run folders in ``folder`` at any depth, sorted by path; links to folders are not followed.

    A folder that has lost its ``resolved.toml`` still counts if it holds ``metrics.jsonl``.
    """
    for place, folders, names in os.walk(folder):
        if RESOLVED in names or METRICS in names:
            folders.clear()  # a run holds no other runs
            yield Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))


def _use(resolved: Mapping[str, Any], table: str) -> Any:
    found = resolved.get(table)
    return found.get("use") if isinstance(found, Mapping) else found


def _toml(path: Path) -> Mapping[str, Any]:
    with reading(path):
        data = path.read_bytes()
    try:
        return tomli.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise RunFolderError(f"{path} is damaged: {error}") from error
