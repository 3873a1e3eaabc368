"""A run at its newest whole checkpoint, without going on with it: its plan, its workload, its metrics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from curvlab.engine import checkpoint
from curvlab.engine.averaging import Averaging
from curvlab.engine.evaluation import metrics_of
from curvlab.engine.folder import CHECKPOINTS, threads_of
from curvlab.engine.memory import memory_in_words
from curvlab.engine.plan import MOST_THREADS, Plan
from curvlab.engine.reproducible import reproducible
from curvlab.engine.training import Progress, fraction_of, require_same_run, restore_model
from curvlab.errors import CheckpointError
from curvlab.protocols.report import Event
from curvlab.protocols.task import Workload


@dataclass(frozen=True)
class Found:
    """A run's newest whole checkpoint, and what is wrong with newer ones."""

    checkpoint: checkpoint.Checkpoint
    faults: tuple[str, ...]

    def events(self) -> list[Event]:
        """What the run's log should say of it."""
        step, name = self.checkpoint.step, self.checkpoint.path.name
        found = [
            Event("damaged-checkpoint", step, {"fault": fault, "instead": name}) for fault in self.faults
        ]
        if self.checkpoint.format == 1:
            why = "format 1 has no checksum of state.json"
            found.append(Event("unverified-checkpoint", step, {"checkpoint": name, "reason": why}))
        return found


def newest_of(folder: Path) -> Found | None:
    """A run that was killed before its first checkpoint has none, and goes on from its first step."""
    with memory_in_words():
        found = checkpoint.newest(folder / CHECKPOINTS)
    return None if found is None else Found(*found)


def as_it_ran(plan: Plan, found: Found | None, folder: Path | None) -> Plan:
    """``plan`` with as many threads as the run has had: sums in another order are other numbers.

    The manifest says so for checkpoints of format 1, which do not.
    """
    if plan.run.threads is not None or found is None or folder is None:
        return plan
    threads = found.checkpoint.plain.get("threads")
    if found.checkpoint.format == 1:
        threads = threads_of(folder)
        if threads is None:
            return plan
    if not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS:
        raise CheckpointError(
            f"{folder}: the recorded number of threads is {threads!r}, expected 1 to {MOST_THREADS}; "
            "restore the run's own manifest.json and checkpoints"
        )
    return replace(plan, run=replace(plan.run, threads=threads))


class Rebuilt(NamedTuple):
    """A run's workload at a checkpoint: the newest whole one, and what is wrong with newer ones.

    The model holds the trained weights; ``averaging`` the average of the weights, where the run keeps one.
    """

    workload: Workload
    checkpoint: checkpoint.Checkpoint
    faults: tuple[str, ...]
    averaging: Averaging | None


@contextmanager
def rebuilt(plan: Plan, folder: Path) -> Iterator[Rebuilt]:
    """Inside, the run's workload as it was evaluated at its newest whole checkpoint, with as many threads.

    Raises ``CheckpointError`` if there is none, ``OutOfMemory``.
    """
    found = newest_of(folder)
    if found is None:
        raise CheckpointError(f"{folder} has no checkpoint; continue the run with `curvlab resume {folder}`")
    with reproducible(as_it_ran(plan, found, folder)), memory_in_words():
        saved = found.checkpoint
        model = plan.task.model()
        workload = plan.task.workload(
            model, dtype=plan.backend.dtypes.parameters, device=plan.backend.torch_device
        )
        require_same_run(plan, saved, f"checkpoint {saved.path}")
        progress = Progress.of(saved.plain["progress"])
        backend = plan.backend.at(fraction_of(plan, progress, workload.size))
        if backend.dtypes.parameters != plan.backend.dtypes.parameters:
            workload = plan.task.workload(model, dtype=backend.dtypes.parameters, device=backend.torch_device)
        restore_model(workload.model, plan, saved)
        averaging = None
        if plan.average is not None:
            averaging = Averaging(plan.average, workload.model, backend)
            tensors = {n.removeprefix("optimizer/"): t for n, t in saved.tensors.items()}
            averaging.restore(tensors, saved.plain["optimizer"])
        with backend.forward():
            yield Rebuilt(workload, saved, found.faults, averaging)


def evaluate(plan: Plan, folder: Path) -> dict[str, Any]:
    """The metrics of a run's newest whole checkpoint, computed anew.

    ``step``, ``checkpoint``, ``metrics``, and ``damaged``: what is wrong with newer checkpoints.  The metrics
    equal, bit for bit, the run's evaluation line of that step, on the same machine with as many threads,
    which it takes.  Raises ``CheckpointError`` if there is none, ``OutOfMemory``.
    """
    with rebuilt(plan, folder) as (workload, saved, faults, averaging):
        metrics = dict(metrics_of(workload, averaging, plan.task.batch_size))
    return {
        "run": str(folder),
        "step": saved.step,
        "checkpoint": saved.path.name,
        "metrics": metrics,
        "damaged": list(faults),
    }
