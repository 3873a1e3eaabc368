"""One trial: an ordinary run, found again by its name and continued if it was interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from curvlab.config.layers import Layers
from curvlab.errors import CurvlabError, Diverged, OutOfMemory
from curvlab.files import writing
from curvlab.protocols.report import Reporter
from curvlab.reporting.rundir import CHECKPOINTS, RESOLVED, RunDir

#: reasons of a run's end after which a trial is over
OVER = ("finished", "diverged", "stopped")


@dataclass(frozen=True)
class Trial:
    """A run that is to be made: the beginning of its folder's name, its configuration, what it differs in.

    ``listener`` makes a reporter in the process that trains, and is pickled on the way there.  ``below`` is a
    folder inside the one that holds the trials.
    """

    name: str
    layers: Layers
    settings: Mapping[str, Any]
    listener: Callable[[], Reporter] | None = None
    below: str = ""


@dataclass(frozen=True)
class Ended:
    """What a process that carried out a trial sends back: the run's folder, or an error in words.

    ``exit_code`` is that of the error, 0 without one.
    """

    folder: Path | None
    error: str = ""
    exit_code: int = 0


def carried_out(trial: Trial, out: Path) -> Ended:
    """Train a trial in a folder below ``out``, or go on where its run was interrupted.

    A run that is over is left as it is.  One that was killed before its first checkpoint is set aside, in a
    folder whose name begins with a dot, and made anew.  A run that diverges or is out of memory is over too:
    its summary says so.  Other errors come back in words, because not every error can be pickled.
    """
    try:
        return Ended(_trained(trial, out / trial.below))
    except CurvlabError as error:
        return Ended(None, str(error), error.exit_code)


def _trained(trial: Trial, out: Path) -> Path:
    from curvlab.config import build
    from curvlab.engine.run import train_plan
    from curvlab.reporting.console import Console
    from curvlab.reporting.runlog import RunLog

    folder = run_of(trial.name, out)
    if folder is not None and is_over(folder):
        return folder
    if folder is not None and not _has_checkpoint(folder):
        _set_aside(folder)
        folder = None
    plan = build(trial.layers)
    others = tuple(one for one in plan.reporters if not isinstance(one, Console))
    listeners = () if trial.listener is None else (trial.listener(),)
    try:
        return train_plan(
            replace(plan, reporters=others), out=out, log=RunLog, resume_from=folder, listeners=listeners
        ).folder
    except (Diverged, OutOfMemory):
        made = run_of(trial.name, out)
        if made is None:  # it failed before there was a folder to say so
            raise
        return made


def run_of(name: str, out: Path) -> Path | None:
    """The newest run folder of a trial below ``out``."""
    found = [folder for folder in out.glob(f"{name}-*") if (folder / RESOLVED).is_file()]
    return max(found, default=None)  # those of one name differ in the time first


def is_over(folder: Path) -> bool:
    """Whether a trial's run needs no more work: one that ran out of memory, or was interrupted, does."""
    return RunDir(folder).summary.get("exit_reason") in OVER


def _has_checkpoint(folder: Path) -> bool:
    from curvlab.engine import checkpoint

    return checkpoint.exist(folder / CHECKPOINTS)


def _set_aside(folder: Path) -> None:
    from curvlab.engine.folder import claimed

    with claimed(folder):  # raises if another process trains in it
        hidden = folder.with_name(f".{folder.name}")
        with writing(hidden):
            folder.rename(hidden)
