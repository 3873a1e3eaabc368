"""The pictures that a run's task shows of its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from curvlab.engine.batch_norm import recompute
from curvlab.engine.plan import Plan
from curvlab.engine.rebuilt import rebuilt
from curvlab.protocols.picture import Picture


@dataclass(frozen=True)
class Shown:
    """Pictures at a step, and what is wrong with newer checkpoints."""

    step: int
    pictures: tuple[Picture, ...]
    faults: tuple[str, ...]


def pictures_of(plan: Plan, folder: Path) -> Shown:
    """What the task of a run shows at the newest whole checkpoint, with averaged weights where it keeps them.

    Raises ``CheckpointError`` if there is none, ``OutOfMemory``.
    """
    with rebuilt(plan, folder) as (workload, saved, faults, averaging):
        if averaging is not None:
            averaging.enter()
            recompute(workload, plan.task.batch_size)
        return Shown(saved.step, tuple(workload.pictures()), faults)
