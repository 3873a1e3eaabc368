"""A whole run: its processes, its folder, training, and what is written whatever the end."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from curvlab.engine import checkpoint
from curvlab.engine.broadcast import Broadcast
from curvlab.engine.company import company
from curvlab.engine.conversion import restore_in_phase
from curvlab.engine.folder import (
    CHECKPOINTS,
    METRICS,
    claimed,
    create,
    summary_of,
    write_resolved,
)
from curvlab.engine.interrupts import Interrupts
from curvlab.engine.loop import training_loop
from curvlab.engine.manifest import describe, same_everywhere
from curvlab.engine.memory import memory_in_words
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.plan import Plan
from curvlab.engine.rebuilt import as_it_ran, newest_of
from curvlab.engine.reproducible import reproducible
from curvlab.engine.training import (
    Training,
    capture,
    prepare,
)
from curvlab.errors import (
    CurvlabError,
    Diverged,
    NotPositiveDefinite,
    OutOfMemory,
    RunFolderError,
    Stopped,
    UsageError,
    raised,
)
from curvlab.files import read_lines, require_temporary_folder
from curvlab.protocols.report import Event, Reporter
from curvlab.protocols.task import Workload


@dataclass(frozen=True)
class Run:
    """What a run leaves behind: its folder, the content of its ``summary.json``, and the live parts.

    ``was_over``: it had been finished before, within this budget, and nothing was done.
    """

    folder: Path
    summary: Mapping[str, Any]
    model: nn.Module
    optimizer: CurvatureOptimizer
    workload: Workload
    was_over: bool = False

    def __repr__(self) -> str:
        """The folder, how it ended and the last metrics, on one line."""
        facts = [f"{name}={value:.4g}" for name, value in self.summary.get("metrics", {}).items()]
        said = ", ".join([str(self.summary.get("exit_reason")), f"steps={self.summary.get('steps')}", *facts])
        return f"Run({str(self.folder)!r}, {said})"

    def _repr_html_(self) -> str:
        """A small table for notebooks; names are escaped."""
        best = self.summary.get("best")
        facts = {
            "folder": self.folder,
            "method": self.summary.get("method"),
            "ended": self.summary.get("message") or self.summary.get("exit_reason"),
            "steps": self.summary.get("steps"),
            "seconds of training": f"{self.summary.get('seconds', 0.0):.4g}",
            **{name: f"{value:.4g}" for name, value in self.summary.get("metrics", {}).items()},
        }
        if best:
            facts[f"best {best['metric']}"] = f"{best['value']:.4g} at step {best['step']}"
        rows = [
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(str(fact))}</td></tr>"
            for name, fact in facts.items()
        ]
        return f"<table>{''.join(rows)}</table>"

    def metrics(self, kind: Literal["eval", "step"] = "eval") -> list[dict[str, Any]]:
        """The lines of ``metrics.jsonl``: of evaluations (``"eval"``), or of logged steps (``"step"``).

        Each is a dictionary with ``step``, ``seconds`` and the metrics by name; a value that was not finite
        is ``None``.  Raises ``RunFolderError`` for a damaged file, and ``UsageError`` for another kind.
        """
        if kind not in ("eval", "step"):
            raise UsageError(f'metrics: expected kind "eval" or "step", got {kind!r}')
        lines = read_lines(self.folder / METRICS)
        return [{k: v for k, v in line.items() if k != "kind"} for line in lines if line.get("kind") == kind]


def train_plan(
    plan: Plan,
    *,
    out: Path,
    log: Callable[..., Reporter],
    resume_from: Path | None = None,
    listeners: tuple[Reporter, ...] = (),
) -> Run:
    """Train a plan to the end of its budget, in a new folder under ``out`` or on in ``resume_from``.

    ``log(folder)`` makes the reporter that keeps the folder; ``log(folder, step, evaluated)`` that of a
    run that goes on after ``step``, of which the last evaluation was at step ``evaluated``.  The other
    reporters are the plan's and ``listeners``.  A run that goes on takes as many threads as it has had,
    unless the plan says how many; one that is finished already is returned as it is.

    The folder is made once model, data and optimizer are: a faulty configuration leaves nothing.
    ``summary.json`` is written whatever the end; its exit reason is ``stopped`` if a reporter raised
    ``StopRun``.  Raises ``Stopped`` after a signal's checkpoint,
    ``Diverged`` naming the step and the last good checkpoint, ``CheckpointError``, ``DataError``;
    ``RunFolderError`` if the folder cannot be written, was moved meanwhile, or holds a damaged file;
    ``OutOfMemory``.
    """
    require_temporary_folder()
    found = None if resume_from is None else newest_of(resume_from)
    plan = as_it_ran(plan, found, resume_from)
    with company(plan.backend.torch_device) as together, Interrupts() as interrupts, reproducible(plan):
        tell = Broadcast()
        together.require_same(same_everywhere(plan))
        with memory_in_words():
            training = prepare(plan, tell.happened, together)
        together.draw_apart(plan.run.seed)
        if resume_from is None:
            folder = Path(together.told(lambda: str(create(out, plan))))
        else:
            folder = resume_from
            if found is not None:
                restore_in_phase(training, found.checkpoint)
            before = summary_of(folder)
            if _is_over(training) and before.get("exit_reason") == "finished":
                return _run(training, folder, before, was_over=True)
        with ExitStack() as stack:
            first, goes_on = together.is_first, resume_from is not None  # the first alone writes and reports
            require_there = together.all_do(
                lambda: stack.enter_context(claimed(folder)) if first else _nothing
            )
            keeper = together.all_do(lambda: _log_of(training, folder, log, goes_on) if first else Reporter())
            tell.open(keeper, (*plan.reporters, *listeners) if first else (), training.progress.events)
            known = [] if found is None else found.events()
            summary = _train_and_summarize(training, folder, tell, interrupts, require_there, known)
            return _run(training, folder, summary)


def _nothing() -> None:
    """Where another process keeps the folder, this one need not look after it."""


def _log_of(training: Training, folder: Path, log: Callable[..., Reporter], goes_on: bool) -> Reporter:
    """The log of a run that begins or goes on in ``folder``."""
    if not goes_on:
        return log(folder)
    step = training.progress.step
    # the log first: it raises for damaged files before anything is changed
    keeper = log(folder, step, training.progress.evaluated.step)
    checkpoint.set_aside_newer(folder / CHECKPOINTS, step)
    write_resolved(folder, training.plan)
    return keeper


def _is_over(training: Training) -> bool:
    progress = training.progress
    return training.spent and progress.evaluated.step == progress.saved.step == progress.step


def _train_and_summarize(
    training: Training,
    folder: Path,
    tell: Broadcast,
    interrupts: Interrupts,
    require_there: Callable[[], None],
    known: Sequence[Event],
) -> Mapping[str, Any]:
    """Train, and return the summary, which is reported whatever happens.

    ``require_there`` raises if the folder is not in its place; ``known`` are events to begin with.
    """
    together = training.company

    def write(tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> Path:
        require_there()
        root, keep = folder / CHECKPOINTS, training.plan.run.keep
        return checkpoint.save(root, training.progress.step, tensors, plain, keep=keep)

    def save() -> Path:
        tensors, plain = together.all_do(lambda: capture(training))
        return Path(together.told(lambda: str(write(tensors, plain))))

    try:
        tell.started(describe(training, folder))
        for event in known:
            tell.happened(event)
        with memory_in_words():
            training_loop(training, tell, interrupts, save)
    except BaseException as error:
        clear = _in_words(error, training, folder)
        summary = _summary(training, folder, _reason(clear, interrupts), clear)
        try:
            tell.finished(summary)
        except RunFolderError as unwritten:
            if isinstance(clear, CurvlabError):
                clear.args = (f"{clear}; summary.json was not written: {unwritten}",)
        if clear is error:
            raise
        raise clear from error
    stopped = tell.stop is not None and not training.spent
    summary = _summary(training, folder, "stopped" if stopped else "finished", None)
    if stopped:
        summary["message"] = f"stopped by the reporter {tell.stop}"
    tell.finished(summary)
    return summary


def _in_words(error: BaseException, training: Training, folder: Path) -> BaseException:
    """``error``, with the step and the way to go on where it is one that a run may end with."""
    saved, step = training.checkpoint, training.progress.step
    last = f"the newest whole checkpoint is {saved}" if saved else "no checkpoint was written yet"
    go_on = f"continue with `curvlab resume {folder}`"
    if isinstance(error, (Diverged, NotPositiveDefinite)):
        return Diverged(f"{error}; {step} steps were taken; {last}")
    if isinstance(error, OutOfMemory):
        return OutOfMemory(f"{error}; {step} steps were taken; {last}")
    if isinstance(error, RunFolderError):
        return RunFolderError(f"{error}; {step} steps were taken; {last}; then {go_on}")
    if isinstance(error, KeyboardInterrupt):
        return Stopped(f"stopped at once after step {step}; {last}; {go_on}", 130)
    if isinstance(error, Stopped):
        return Stopped(f"{error}; {go_on}", error.exit_code)
    if not isinstance(error, Exception):  # a part that raises SystemExit(0) does not make the run a success
        return CurvlabError(f"a part raised {raised(error)} after step {step}; {last}; {go_on}")
    return error


def _reason(error: BaseException, interrupts: Interrupts) -> str:
    if isinstance(error, Stopped):
        return (interrupts.caught or "SIGINT").lower()
    return "diverged" if isinstance(error, Diverged) else "failed"


def _summary(training: Training, folder: Path, reason: str, error: BaseException | None) -> dict[str, Any]:
    """The content of ``summary.json``."""
    progress, plan = training.progress, training.plan
    code = 0 if error is None else error.exit_code if isinstance(error, CurvlabError) else 1
    return {
        "name": plan.run.name,
        "folder": str(folder),
        "method": plan.method_name,
        "exit_reason": reason,
        "exit_code": code,
        "message": "" if error is None else str(error) or type(error).__name__,
        "metrics": dict(progress.metrics or {}),
        "metrics_step": progress.evaluated.step,
        "best": progress.best,
        "steps": progress.step,
        "epochs": training.epochs,
        "examples": progress.examples,
        "seconds": progress.seconds,
        "events": dict(progress.events),
        "checkpoint": None if training.checkpoint is None else f"{CHECKPOINTS}/{training.checkpoint.name}",
    }


def _run(training: Training, folder: Path, summary: Mapping[str, Any], was_over: bool = False) -> Run:
    return Run(folder, summary, training.model, training.optimizer, training.workload, was_over)
