"""The functions of the public face: an optimizer for one's own loop, and a whole run."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from curvlab.config.layer_readers import layer_readers
from curvlab.config.layers import load
from curvlab.config.plan import build, build_method, build_part
from curvlab.config.schema import settings_of
from curvlab.engine import run
from curvlab.engine.folder import unfinished
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.run import Run
from curvlab.errors import ConfigError, Fault, UsageError
from curvlab.model.admission import real_dtype, require_trainable
from curvlab.objectives.ranks import ranks_of
from curvlab.protocols.average import Average
from curvlab.protocols.backend import Backend
from curvlab.protocols.reader import LayerReader
from curvlab.protocols.report import Reporter
from curvlab.registry.imports import part_class
from curvlab.registry.loader import installed
from curvlab.registry.registry import Registry
from curvlab.reporting.console import Console
from curvlab.reporting.runlog import RunLog


def optimizer(
    method: str,
    model: nn.Module,
    *,
    settings: Mapping[str, Any] | None = None,
    precision: str | Mapping[str, Any] | None = None,
    reduction: str = "mean",
    seed: int = 0,
    group: Any = "world",
    placement: str = "auto",
    groups: Sequence[Mapping[str, Any]] = (),
    examples: int | Callable[..., int] | None = None,
    strict: bool = False,
    readers: Sequence[LayerReader] | None = None,
    average: str | Mapping[str, Any] | None = None,
    **knobs: Any,
) -> CurvatureOptimizer:
    """A ``torch.optim.Optimizer`` that trains every parameter of ``model`` that requires a gradient.

    ``knobs`` are the method's few settings (``curvlab methods NAME`` lists them); ``settings`` maps dotted
    paths to anything deeper: ``{"preconditioner.inverse": "eigen"}``.  ``precision`` names the arithmetic,
    or is a table of it (``{"use": "bfloat16", "factors": "float32"}``); left out, it is that of the
    parameters.  ``reduction`` says how the caller's loss averages over the batch (``"mean"``, ``"sum"``, or
    ``"mean-tokens"`` for a mean over batch and sequence).  ``group`` says which processes train this model,
    each on its own examples: all of ``torch.distributed`` where that is initialized (``"world"``), those of
    a group, or ``None`` for this one alone.  ``placement`` says whether they share the method's work: with
    ``"owner"`` one process holds the state of a block and finds its update, with ``"replicate"`` every one
    does all of it; ``"auto"`` is ``"owner"`` where the method treats every block by itself.

    ``groups`` are parameters whose settings differ, as in torch: ``params`` is a shell pattern of
    parameter names, a list of patterns, or parameters of the model; the other keys are those that
    ``param_groups`` shows (``lr``, and where the method has them ``weight_decay``, ``momentum``,
    ``damping``, ``betas``).  Parameters that no group names form the first group:
    ``groups=[{"params": ["*.bias"], "weight_decay": 0.0}]``.

    ``examples`` declares how many examples a call of the model has where the first axis of its first
    tensor is not it: a number, or a function of the model's inputs.  ``strict`` refuses a model of which
    the method treats less than half of the numbers itself; otherwise a warning says so at the first step.
    ``readers`` are the layer readers to use, in order, instead of all that are installed: what none of them
    reads, the method's fallback trains.

    ``average`` names an average of the weights to keep, or is a table of one
    (``{"use": "ema", "decay": 0.99}``): ``with optimizer.averaged():`` has it in the model.

    Raises ``ConfigError`` with every unknown knob, faulty value, and parameter that cannot be trained,
    ``CoverageError`` if ``strict`` refuses, and ``UsageError`` for what is not a model or holds no
    parameters.
    """
    _require_model(model)
    registry = installed()
    composed = build_method(registry, method, knobs, settings)
    parameters = list(model.parameters())
    if not parameters:
        raise UsageError("the model has no parameters to train")
    require_trainable(model)
    dtype = real_dtype(model)
    given = {"use": precision} if isinstance(precision, str) else dict(precision or {})
    name = given.pop("use", None) or _name(dtype)
    choice = part_class(registry.part("precision", name))
    device = {"device": str(parameters[0].device)} if "device" in settings_of(choice) else {}
    backend: Backend = build_part(registry, Backend, name, {**device, **given})
    _require_precision(backend, name, dtype)
    return CurvatureOptimizer(
        composed,
        model,
        backend=backend,
        seed=seed,
        reduction=reduction,
        name=method,
        ranks=ranks_of(group),
        placement=placement,
        groups=groups,
        examples=examples,
        strict=strict,
        readers=layer_readers(registry) if readers is None else tuple(readers),
        average=_average(registry, average),
    )


def _average(registry: Registry, given: str | Mapping[str, Any] | None) -> Average[Any] | None:
    """The part that ``average`` names; raises ``ConfigError`` for a table without ``use``."""
    if given is None:
        return None
    table = {"use": given} if isinstance(given, str) else dict(given)
    use = table.pop("use", None)
    if use is None:
        raise ConfigError(Fault("the average has no name", path="average", hint='add "use": "ema"'))
    part: Average[Any] = build_part(registry, Average, use, table)
    return part


def _require_model(model: Any) -> None:
    """Refuse ``model.parameters()``, lists, groups and the like in place of the model."""
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type) and issubclass(model, nn.Module):
        raise UsageError(
            f"curvlab.optimizer got the class {model.__name__}; pass a model, such as {model.__name__}(…)"
        )
    message = (
        f"curvlab.optimizer needs the model (an nn.Module), but got {type(model).__name__}:"
        " pass model, not model.parameters(), because the method reads layers too."
        "  Freeze what is not trained with requires_grad_(False)"
    )
    listed = isinstance(model, (list, tuple)) and any(isinstance(item, Mapping) for item in model)
    if listed or isinstance(model, Mapping):
        message += (
            ". Pass parameter groups as groups=, with patterns of names or parameters:"
            ' groups=[{"params": ["*.bias"], "weight_decay": 0.0}]'
        )
    raise UsageError(message)


def _require_precision(backend: Backend, name: str, dtype: torch.dtype) -> None:
    """Refuse a precision whose parameters are of another dtype than the model's."""
    if backend.at(1.0) is not backend:
        what = f'precision "{name}" goes by the budget of a run, which a loop of one\'s own does not have'
        raise ConfigError(
            Fault(what, path="precision", hint="name one of its precisions, or use curvlab.train")
        )
    wanted = backend.dtypes.parameters
    if wanted == dtype:
        return
    convert = {torch.float32: "model.float()", torch.float64: "model.double()"}.get(
        wanted, f"model.to(torch.{_name(wanted)})"
    )
    hint = "leave precision out to use the dtype of the parameters"
    hint = f"call {convert} first, or {hint}"
    what = f'precision "{name}" needs parameters in {_name(wanted)}; the model has {_name(dtype)}'
    raise ConfigError(Fault(what, path="precision", hint=hint))


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def train(
    config: Mapping[str, Any] | str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    *,
    out: str | os.PathLike[str] = "runs",
    resume: bool = False,
    progress: bool | None = None,
    reporters: Sequence[Reporter] = (),
) -> Run:
    """One run, as ``curvlab train`` makes it: a folder in ``out``, metrics, checkpoints.

    ``config`` is a mapping of the tables of a configuration file, the path of one, or several
    paths of which later ones override earlier.  With ``resume`` the newest unfinished run of this
    configuration in ``out`` goes on, if there is one.

    ``progress`` says whether the terminal shows the run; left out, the table ``[report]`` says so.
    ``reporters`` listen beside those of ``[report]``, such as an object of a class of your own; one may raise
    ``curvlab.protocols.report.StopRun`` to end the run.  Raises ``UsageError`` for what is no reporter.
    """
    wrong = [one for one in reporters if not isinstance(one, Reporter)]
    if wrong:
        raise UsageError(
            f"reporters: expected objects of classes derived from curvlab's Reporter, got {wrong[0]!r}"
        )
    plan = build(load(data=config) if isinstance(config, Mapping) else load(config))
    shown = [one for one in plan.reporters if isinstance(one, Console)]
    if progress is False:
        plan = replace(plan, reporters=tuple(one for one in plan.reporters if one not in shown))
    elif progress and not shown:
        plan = replace(plan, reporters=(Console(), *plan.reporters))
    folder = unfinished(Path(out), plan) if resume else None
    return run.train_plan(plan, out=Path(out), log=RunLog, resume_from=folder, listeners=tuple(reporters))
