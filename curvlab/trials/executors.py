"""Where trials are carried out: in this process, in processes of this machine, or by submitit's jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from curvlab.errors import CurvlabError, Stopped, UsageError
from curvlab.trials.placement import SUBMITIT, Placement
from curvlab.trials.trial import Ended, Trial, carried_out

#: seconds between looks at jobs
_PAUSE = 0.05


class Job(Protocol):
    """A call on its way, as ``concurrent.futures.Future`` and ``submitit.Job`` are."""

    def done(self) -> bool:
        """Whether there is a result or an error."""

    def result(self) -> Any:
        """What the function returned; raises what it raised."""


class Executor(Protocol):
    """What carries out calls, as ``concurrent.futures.Executor`` and ``submitit.Executor`` do."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Begin a call, and return its ``Job``."""


def fan_out(trials: Iterator[Trial], out: Path, placement: Placement) -> Iterator[tuple[Trial, Path]]:
    """Carry out trials, and yield each with its run's folder as it ends.

    The next trial is drawn from the iterator when one can begin, after those that ended were yielded.  Raises
    ``Stopped`` if a signal ended a trial, and ``CurvlabError`` for what else makes a trial fail: it names the
    trial and its settings.  Trials in progress at that time are stopped with a checkpoint, if they run on
    this machine.
    """
    with _executor(placement, out) as executor:
        running: list[tuple[Trial, Job]] = []
        exhausted = False
        while running or not exhausted:
            if len(running) < placement.jobs and not exhausted:
                trial = next(trials, None)
                exhausted = trial is None
                if trial is not None:
                    running.append((trial, executor.submit(CarryOut(), trial, out)))
            ended = [pair for pair in running if pair[1].done()]
            for pair in ended:
                running.remove(pair)
                trial, job = pair
                yield trial, _folder_of(trial, _result(trial, job, placement))
            if not ended and (exhausted or len(running) == placement.jobs):
                time.sleep(_PAUSE)


class CarryOut:
    """``carried_out`` as a call that a scheduler may interrupt and put in its queue again."""

    def __call__(self, trial: Trial, out: Path) -> Ended:
        """Carry out the trial."""
        return carried_out(trial, out)

    def checkpoint(self, trial: Trial, out: Path) -> Any:
        """What submitit submits after a preemption: the same call, which goes on from a checkpoint."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, trial, out)


def _result(trial: Trial, job: Job, placement: Placement) -> Ended:
    from concurrent.futures.process import BrokenProcessPool

    try:
        ended: Ended = job.result()
    except BrokenProcessPool as error:
        raise CurvlabError(
            f"{trial.name}: a process that carried out trials was killed, perhaps for lack of memory;"
            " run the same command to continue, with fewer jobs if so"
        ) from error
    except Exception as error:
        if placement.use != SUBMITIT or not type(error).__module__.startswith("submitit"):
            raise
        raise CurvlabError(f"{trial.name}: submitit reports that the job failed: {error}") from error
    return ended


def _folder_of(trial: Trial, ended: Ended) -> Path:
    if ended.folder is not None:
        return ended.folder
    if ended.exit_code in (75, 130):
        raise Stopped(f"{ended.error}; or run the same command again to continue all", ended.exit_code)
    said = ", ".join(f"{key} = {value}" for key, value in trial.settings.items())
    failed = CurvlabError(f"{trial.name}{f' ({said})' if said else ''}: {ended.error}")
    failed.exit_code = ended.exit_code
    raise failed


@contextmanager
def _executor(placement: Placement, out: Path) -> Iterator[Executor]:
    if placement.use == SUBMITIT:
        yield _submitit(placement, out)
    elif placement.jobs == 1:
        yield _Here()
    else:
        from curvlab.trials.processes import processes

        with processes(placement.jobs) as pool:
            yield pool


@dataclass(frozen=True)
class _Done:
    """A call that was carried out when it was submitted."""

    value: Any

    def done(self) -> bool:
        return True

    def result(self) -> Any:
        return self.value


class _Here:
    """Calls in this process, one after the other."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> _Done:
        return _Done(fn(*args, **kwargs))


def _submitit(placement: Placement, out: Path) -> Executor:
    """submitit's own choice of an executor; raises ``UsageError`` for options that it does not take."""
    import submitit

    options = dict(placement.options)
    try:
        executor: Any = submitit.AutoExecutor(out / "submitit", cluster=options.pop("cluster", None))
        executor.update_parameters(**options)
    except Exception as error:  # submitit raises various errors for one mistake
        raise UsageError(f"[executor]: submitit refuses these options: {error}") from error
    return executor  # type: ignore[no-any-return]
