"""A run in flight: its live parts, how far it is, and both as what a checkpoint holds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.engine.checkpoint import Checkpoint
from curvlab.engine.companions import Companions
from curvlab.engine.company import ALONE, Company
from curvlab.engine.health import is_finite, require_finite_tensors
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.plan import Plan
from curvlab.engine.state import export
from curvlab.engine.state import restore as refill
from curvlab.errors import CheckpointError
from curvlab.protocols.backend import Backend
from curvlab.protocols.cadence import is_due
from curvlab.protocols.report import Event
from curvlab.protocols.sampler import SampleStream
from curvlab.protocols.task import Workload

#: what ``capture`` gives beside tensors, and what format 1 lacked of it
_PARTS = frozenset({"method", "configuration", "threads", "optimizer", "strides", "sampler", "progress"})
_SINCE_2 = frozenset({"configuration", "threads"})


@dataclass
class Mark:
    """When something that happens on a cadence last happened."""

    step: int = 0
    epoch: int = 0

    def due(self, every: int | None, step: int, epoch: int) -> bool:
        """Whether it is time again: every ``every`` steps, or once an epoch if that is ``None``."""
        return step > self.step and (is_due(step, every) if every else epoch > self.epoch)

    def set(self, step: int, epoch: int) -> None:
        """It happened now."""
        self.step, self.epoch = step, epoch


@dataclass
class Progress:
    """How far a run is: all that the loop remembers.

    ``examples`` counts those that entered a gradient, ``seconds`` training alone.  ``best`` is the
    best value so far of the metric that the task is judged by, and the step it was seen at; ``metrics``
    are the latest.
    """

    step: int = 0
    examples: int = 0
    seconds: float = 0.0
    logged: int = 0
    evaluated: Mark = field(default_factory=Mark)
    saved: Mark = field(default_factory=Mark)
    metrics: dict[str, float] | None = None
    best: dict[str, Any] | None = None
    events: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Progress:
        """From what ``dataclasses.asdict`` made of one; raises ``CheckpointError`` for anything else."""
        plain = _like(dataclasses.asdict(cls()), plain, "progress")
        marks = {name: Mark(**plain[name]) for name in ("evaluated", "saved")}
        return cls(**{**plain, **marks})


@dataclass
class Training:
    """A run in flight.

    ``checkpoint`` is the newest whole one.  ``infinite`` names the buffers that the model is built with and
    that are not finite, as masks are; a checkpoint may hold these.  ``company`` are the processes that train
    it together.
    """

    plan: Plan
    model: nn.Module
    workload: Workload
    optimizer: CurvatureOptimizer
    samples: SampleStream[Any]
    progress: Progress = field(default_factory=Progress)
    checkpoint: Path | None = None
    infinite: frozenset[str] = frozenset()
    company: Company = ALONE

    @property
    def companions(self) -> Companions:
        """The callbacks at work."""
        assert self.optimizer.companions is not None
        return self.optimizer.companions

    @property
    def epochs(self) -> float:
        """Passes over the training examples so far."""
        return self.progress.examples / self.workload.size

    @property
    def spent(self) -> bool:
        """Whether the budget is used up, or a callback has ended the run."""
        run, done = self.plan.run, self.progress
        if self.companions.stops() is not None:
            return True
        if run.steps is not None:
            return done.step >= run.steps
        if run.seconds is not None:
            return done.seconds >= run.seconds
        assert run.epochs is not None, "a plan has exactly one budget"
        return done.examples >= run.epochs * self.workload.size

    @property
    def fraction(self) -> float:
        """How much of the budget is used up, from 0 to 1."""
        return fraction_of(self.plan, self.progress, self.workload.size)


def fraction_of(plan: Plan, progress: Progress, size: int) -> float:
    """How much of a plan's budget is used up by this progress on ``size`` training examples."""
    run = plan.run
    if run.steps is not None:
        used, budget = float(progress.step), float(run.steps)
    elif run.seconds is not None:
        used, budget = progress.seconds, run.seconds
    else:
        assert run.epochs is not None
        used, budget = progress.examples / size, run.epochs
    return min(used / budget, 1.0) if budget else 1.0


def prepare(plan: Plan, on_event: Callable[[Event], None], company: Company = ALONE) -> Training:
    """Model, data, optimizer and sampler of a plan, seeded, before the first step.  Seed torch first."""
    model, backend = plan.task.model(), plan.backend.at(0.0)
    workload, optimizer = assembled(plan, model, backend, on_event, company=company)
    built = dict(workload.model.named_buffers())
    infinite = frozenset(f"model/{n}" for n, t in built.items() if t.is_floating_point() and not is_finite(t))
    assert optimizer.samples is not None
    samples = optimizer.samples
    return Training(plan, workload.model, workload, optimizer, samples, infinite=infinite, company=company)


def assembled(
    plan: Plan,
    model: nn.Module,
    backend: Backend,
    on_event: Callable[[Event], None],
    samples: SampleStream[Any] | None = None,
    companions: Companions | None = None,
    company: Company = ALONE,
) -> tuple[Workload, CurvatureOptimizer]:
    """Data and optimizer of a plan in a precision, with ``samples`` and ``companions``, or fresh ones."""
    workload = company.all_do(
        lambda: plan.task.workload(model, dtype=backend.dtypes.parameters, device=backend.torch_device)
    )
    if samples is None:
        samples = SampleStream.of(plan.sampler, workload.size, plan.task.batch_size, plan.run.seed)
    if companions is None:
        companions = Companions.of(plan.callbacks, workload.model, plan.method)
    optimizer = CurvatureOptimizer(
        plan.method,
        workload.model,
        backend=backend,
        seed=plan.run.seed,
        name=plan.method_name,
        on_event=on_event,
        readers=plan.readers,
        samples=samples,
        ranks=company.ranks,
        placement=plan.run.placement,
        companions=companions,
        average=plan.average,
    )
    return workload, optimizer


def capture(training: Training) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Everything that going on depends on, as tensors by name and as plain values.

    Every one of several processes must call it, and the first gets it all.  Raises ``Diverged``, naming them,
    for tensors that are not finite: a checkpoint holds none, but for ``Training.infinite``.
    """
    company = training.company
    tensors = {f"model/{name}": tensor for name, tensor in _model_tensors(training.model).items()}
    own, plain = training.optimizer.whole_snapshot()
    tensors.update({f"optimizer/{name}": tensor for name, tensor in own.items()})
    drawn, drawn_plain = export(training.samples.state)
    tensors.update({f"sampler/{name}": tensor for name, tensor in drawn.items()})
    followed, callbacks = training.companions.snapshot()
    tensors.update({f"callbacks/{name}": tensor for name, tensor in followed.items()})
    random = company.random_states(_random_states(training.plan))
    tensors.update({f"random/{name}": state for name, state in random.items()})
    checked = {name: t for name, t in tensors.items() if name not in training.infinite}
    require_finite_tensors(
        checked,
        f"step {training.progress.step}: no checkpoint was written, because these tensors are not finite",
    )
    return tensors, {
        "method": training.plan.method_name,
        "configuration": _numbers_from(training.plan),
        "threads": torch.get_num_threads(),
        "optimizer": plain,
        "strides": {name: list(t.stride()) for name, t in own.items() if _is_permuted(t)},
        "sampler": drawn_plain,
        "progress": dataclasses.asdict(training.progress),
        **({"callbacks": callbacks} if callbacks else {}),
    }


def restore(training: Training, checkpoint: Checkpoint) -> None:
    """Put ``training`` where ``capture`` found it; raises ``CheckpointError`` if it is another run's."""
    plain, where = checkpoint.plain, f"checkpoint {checkpoint.path}"
    require_same_run(training.plan, checkpoint, where)
    _require_same_device(training.plan, checkpoint, where)
    progress = Progress.of(plain["progress"])
    _restore_model(training.model, _part(checkpoint, "model/"), where)
    training.optimizer.restore(_part(checkpoint, "optimizer/"), plain["optimizer"])
    _lay_out(training.optimizer.snapshot()[0], plain["strides"])
    refill(training.samples.state, _part(checkpoint, "sampler/"), plain["sampler"])
    training.companions.restore(_part(checkpoint, "callbacks/"), plain.get("callbacks", {}))
    training.progress = progress
    training.checkpoint = checkpoint.path
    random = training.company.own_random_states(_part(checkpoint, "random/"))
    if random or training.company.is_first:
        _restore_random(random, training.plan, where)
    else:  # a process more than the run had
        training.company.draw_apart(training.plan.run.seed + progress.step)


def restore_model(model: nn.Module, plan: Plan, checkpoint: Checkpoint) -> None:
    """Parameters, buffers and torch's random numbers alone: enough to compute metrics."""
    where = f"checkpoint {checkpoint.path}"
    require_same_run(plan, checkpoint, where)
    _restore_model(model, _part(checkpoint, "model/"), where)
    _restore_random(_part(checkpoint, "random/"), plan, where)


def require_same_run(plan: Plan, checkpoint: Checkpoint, where: str) -> None:
    """Raise ``CheckpointError`` for the checkpoint of another configuration, or one that lacks a part."""
    expected = _PARTS if checkpoint.format > 1 else _PARTS - _SINCE_2
    expected = expected | {"callbacks"} if plan.callbacks else expected
    wrong = sorted(expected ^ set(checkpoint.plain))
    if wrong:
        raise CheckpointError(f"{where}: its state.json has missing or unknown entries: {', '.join(wrong)}")
    method = checkpoint.plain["method"]
    if method != plan.method_name:
        raise CheckpointError(
            f'{where} was written by method "{method}", and the configuration has method '
            f'"{plan.method_name}"; resume with the run\'s own resolved.toml'
        )
    theirs, mine = (
        by_key(checkpoint.plain.get("configuration", {})),
        by_key(_numbers_from(plan)),
    )
    differing = [key for key in mine if key in theirs and theirs[key] != mine[key] and key != "device"]
    if differing:
        listed = "; ".join(f"{k} was {theirs[k]!r} and is {mine[k]!r}" for k in differing[:5])
        raise CheckpointError(
            f"{where} was written with another configuration: {listed}; "
            "restore the run's own resolved.toml and checkpoints"
        )


def _require_same_device(plan: Plan, checkpoint: Checkpoint, where: str) -> None:
    """Raise ``CheckpointError`` where ``device = "auto"`` is another device than when the run was made."""
    device = str(plan.backend.torch_device)
    then = checkpoint.plain.get("configuration", {}).get("device", device)
    if then != device:
        raise CheckpointError(
            f"{where} was written on the device {then}, and this run would go on on {device}, with other"
            f" numbers; resume it on a machine that has {then}, or start a new run"
        )


def _numbers_from(plan: Plan) -> dict[str, Any]:
    """The part of a configuration that the numbers of a run depend on, as JSON gives it back."""
    tables = {name: table for name, table in plan.resolved.items() if name not in ("run", "report")}
    # the device that was taken, too: device = "auto" may be another one on another machine
    fixed = {"seed": plan.run.seed, "device": str(plan.backend.torch_device), **tables}
    found: dict[str, Any] = json.loads(json.dumps(fixed, default=str))
    return found


def by_key(data: Any, path: str = "") -> dict[str, Any]:
    """Every value of a configuration that is not a table, by its dotted key."""
    if not isinstance(data, Mapping):
        return {path: data}
    found: dict[str, Any] = {}
    for key, value in data.items():
        found.update(by_key(value, f"{path}.{key}" if path else str(key)))
    return found


def _part(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in checkpoint.tensors.items() if n.startswith(prefix)}


def _model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters, tied ones once, and buffers, persistent or not."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@torch.no_grad()
def _restore_model(model: nn.Module, saved: Mapping[str, Tensor], where: str) -> None:
    mine = _model_tensors(model)
    wrong = sorted(set(mine) ^ set(saved))
    wrong += [n for n in mine if n in saved and _kind(mine[n]) != _kind(saved[n])]
    if wrong:
        names = ", ".join(wrong[:5])
        raise CheckpointError(
            f"{where} was written with another model: {names} differ in name, shape or dtype"
        )
    for name, tensor in mine.items():
        tensor.copy_(saved[name])


@torch.no_grad()
def _lay_out(tensors: Mapping[str, Tensor], strides: Mapping[str, list[int]]) -> None:
    """Give restored tensors the memory layout that they had: a transposed matrix rounds differently."""
    for name, tensor in tensors.items():
        if list(tensor.stride()) != strides.get(name, list(tensor.stride())):
            fresh = torch.empty_strided(tensor.shape, strides[name], dtype=tensor.dtype, device=tensor.device)
        elif name not in strides and _is_permuted(tensor):
            fresh = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        else:
            continue
        fresh.copy_(tensor)
        tensor.set_(fresh.untyped_storage(), 0, fresh.shape, fresh.stride())


def _is_permuted(tensor: Tensor) -> bool:
    """Whether it is contiguous in another order of its dimensions only, as what ``eigh`` returns."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return not tensor.is_contiguous() and tensor.permute(order).is_contiguous()


def _kind(tensor: Tensor) -> tuple[torch.Size, torch.dtype]:
    return tensor.shape, tensor.dtype


def _random_states(plan: Plan) -> dict[str, Tensor]:
    """torch's global generators, which random layers draw from."""
    states = {"cpu": torch.get_rng_state()}
    if plan.backend.torch_device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(plan.backend.torch_device)
    return states


def _restore_random(states: Mapping[str, Tensor], plan: Plan, where: str) -> None:
    if "cpu" not in states:
        raise CheckpointError(f"{where} has no state of torch's random number generator")
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and plan.backend.torch_device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], plan.backend.torch_device)


def _like(mine: Any, theirs: Any, path: str) -> Any:
    """``theirs``, if it has the keys and types of ``mine``, where ``None`` and ``{}`` stand for anything."""
    if isinstance(mine, Mapping) and isinstance(theirs, Mapping) and mine:
        wrong = sorted(map(str, set(mine) ^ set(theirs)))
        if wrong:
            raise CheckpointError(
                f"{path} of the checkpoint has missing or unknown entries: {', '.join(wrong)}"
            )
        for key, value in mine.items():
            _like(value, theirs[key], f"{path}.{key}")
    elif mine is not None and not _alike(mine, theirs):
        raise CheckpointError(f"{path} of the checkpoint: expected a {type(mine).__name__}, got {theirs!r}")
    return theirs


def _alike(mine: Any, theirs: Any) -> bool:
    numbers = (int, float)
    return isinstance(theirs, numbers if isinstance(mine, numbers) else type(mine))
