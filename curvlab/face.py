"""The functions of the public face: an optimizer for one's own loop, and a whole run."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from curvlab.config.layers import load
from curvlab.config.plan import build, build_method, build_part
from curvlab.config.schema import settings_of
from curvlab.engine import run
from curvlab.engine.folder import unfinished
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.run import Run
from curvlab.errors import UsageError
from curvlab.objective.ranks import ranks_of
from curvlab.protocols.backend import Backend
from curvlab.registry.imports import part_class
from curvlab.registry.loader import installed
from curvlab.reporting.runlog import RunLog


def optimizer(
    method: str,
    model: nn.Module,
    *,
    settings: Mapping[str, Any] | None = None,
    precision: str = "float32",
    reduction: str = "mean",
    seed: int = 0,
    group: Any = "world",
    **knobs: Any,
) -> CurvatureOptimizer:
    """A ``torch.optim.Optimizer`` that trains every parameter of ``model`` that requires a gradient.

    ``knobs`` are the method's few settings (``curvlab methods NAME`` lists them); ``settings`` maps
    dotted paths to anything deeper: ``{"preconditioner.inverse": "eigen"}``.  ``precision`` names the
    arithmetic of curvature; ``reduction`` says how the caller's loss averages over the batch
    (``"mean"``, ``"sum"``, or ``"mean-tokens"`` for a mean over batch and sequence).  ``group`` says which
    processes train this model, each on its own examples: all of ``torch.distributed`` where that is
    initialised (``"world"``), those of a group, or ``None`` for this one alone.  Raises ``ConfigError``
    with every unknown knob and faulty value.
    """
    registry = installed()
    composed = build_method(registry, method, knobs, settings)
    parameters = list(model.parameters())
    if not parameters:
        raise UsageError("the model has no parameters to train")
    choice = part_class(registry.part("precision", precision))
    device = {"device": str(parameters[0].device)} if "device" in settings_of(choice) else {}
    backend: Backend = build_part(registry, Backend, precision, device)
    return CurvatureOptimizer(
        composed, model, backend=backend, seed=seed, reduction=reduction, name=method, ranks=ranks_of(group)
    )


def train(
    config: Mapping[str, Any] | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] = "runs",
    resume: bool = False,
) -> Run:
    """One run, as ``curvlab train`` makes it: a folder in ``out``, metrics, checkpoints.

    ``config`` is a mapping of the tables of a configuration file, the path of one, or several
    paths of which later ones override earlier.  With ``resume`` the newest unfinished run of this
    configuration in ``out`` goes on, if there is one.
    """
    plan = build(load(data=config) if isinstance(config, Mapping) else load(config))
    folder = unfinished(Path(out), plan) if resume else None
    return run.train(plan, out=Path(out), log=RunLog, resume_from=folder)
