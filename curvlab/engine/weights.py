"""The weights of a run, as tensors by name: those that were trained, their average, or both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from curvlab.engine.batch_norm import recompute
from curvlab.engine.plan import Plan
from curvlab.engine.rebuilt import rebuilt
from curvlab.errors import UsageError

Which = Literal["averaged", "trained", "both"]


@dataclass(frozen=True)
class ExportedWeights:
    """A model's ``state_dict`` at a step, ``which`` it is, and what is wrong with newer checkpoints.

    With ``"both"``, names begin with ``averaged/`` and ``trained/``.  Tensors that several names share are
    there once, under the first name, and ``tied`` maps the other names to it.
    """

    step: int
    which: Which
    tensors: Mapping[str, Tensor]
    tied: Mapping[str, str]
    faults: tuple[str, ...]


def exported_weights(plan: Plan, folder: Path, which: Which | None = None) -> ExportedWeights:
    """The weights at a run's newest whole checkpoint: averaged ones if the run keeps some, unless ``which``
    says.

    Statistics of batch normalization are those of the weights beside them.  Raises ``CheckpointError`` if
    there is no checkpoint, ``UsageError`` for averaged weights of a run that keeps none, ``OutOfMemory``.
    """
    which = which or ("trained" if plan.average is None else "averaged")
    if plan.average is None and which != "trained":
        raise UsageError(
            f"{folder} keeps no average of the weights; export its trained weights, or train with a table"
            ' [average], such as use = "ema"'
        )
    with rebuilt(plan, folder) as (workload, saved, faults, averaging):
        trained = _copied(workload.model)
        averaged: dict[str, Tensor] = {}
        if averaging is not None:
            averaging.enter()
            recompute(workload, plan.task.batch_size)
            averaged = _copied(workload.model)
        tied = _tied(workload.model)
    if which == "both":
        found = {"averaged/": averaged, "trained/": trained}
        tensors = {start + n: t for start, each in found.items() for n, t in each.items()}
        tied = {start + n: start + first for start in found for n, first in tied.items()}
    else:
        tensors = trained if which == "trained" else averaged
    return ExportedWeights(saved.step, which, tensors, tied, faults)


def _tied(model: nn.Module) -> dict[str, str]:
    """Names of tensors that another name came first with."""
    first: dict[int, str] = {}
    names = {n: first.setdefault(id(t), n) for n, t in model.state_dict(keep_vars=True).items()}
    return {n: other for n, other in names.items() if n != other}


def _copied(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the ``state_dict`` once, copied to the CPU."""
    tied = _tied(model)
    return {n: t.detach().cpu().clone() for n, t in model.state_dict().items() if n not in tied}
