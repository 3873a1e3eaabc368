"""A run small enough to be killed ten times.

Its model draws random numbers and has buffers; its method has warm starts, damping that learns and
momentum: state of every kind that a checkpoint must hold.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from curvlab.engine import checkpoint
from curvlab.engine.method import Method
from curvlab.engine.plan import Plan, RunSettings
from curvlab.engine.run import Run, train_plan
from curvlab.errors import Stopped
from curvlab.parts.damping import Constant, LevenbergMarquardt
from curvlab.parts.gauss_newton import GaussNewton
from curvlab.parts.identity import Identity
from curvlab.parts.iterative import Iterative
from curvlab.parts.krylov import ConjugateGradients
from curvlab.parts.samplers import Uniform
from curvlab.parts.steps import Armijo, Rate
from curvlab.parts.transforms import Momentum
from curvlab.precision.full import Full
from curvlab.protocols.report import Reporter, StepRecord
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Task, Workload
from curvlab.reporting.runlog import RunLog
from curvlab.tasks.teacher_student import TeacherStudent


@dataclass(frozen=True)
class Restless(Task):
    """Teacher–student with dropout and a buffer that counts evaluations in training mode."""

    batch_size: int = 16
    slow: float = 0.0
    poison: int | None = None  #: from this draw on, the inputs are not finite

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.2), Counter(), nn.Linear(8, 2))

    def workload(self, model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> Workload:
        base = TeacherStudent(inputs=4, hidden=(8,), outputs=2, size=72, validation_size=32)
        return Slowed(base.workload(model, dtype=dtype, device=device), self)


class Counter(nn.Module):
    """Passes its input on; a buffer that is not part of ``state_dict`` counts the calls."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls = self.calls + 1
        return x


class Slowed(Workload):
    """Another workload, with pauses and poison."""

    def __init__(self, base: Any, task: Restless) -> None:
        self.base, self.task, self.model, self.drawn = base, task, base.model, 0

    @property
    def size(self) -> int:
        return int(self.base.size)

    def objective(self, draw: Draw) -> Any:
        time.sleep(self.task.slow)
        objective = self.base.objective(draw)
        self.drawn += 1
        if self.task.poison is not None and self.drawn > self.task.poison:
            objective.gradient_sample[0].fill_(torch.nan)
        return objective

    def metrics(self) -> Mapping[str, float]:
        return self.base.metrics()


#: a method with a state of every kind, and one of almost none
CURVED = Method(
    Iterative(GaussNewton(), ConjugateGradients(max_iterations=4), warm_start=0.9),
    LevenbergMarquardt(initial=1.0, interval=2),
    Armijo(),
    on_update=(Momentum(0.5),),
)
PLAIN = Method(Identity(), Constant(0.0), Rate(0.05), on_update=(Momentum(0.9),))


def small_plan(
    method: Method = CURVED,
    *,
    task: Task | None = None,
    reporters: tuple[Reporter, ...] = (),
    **run: Any,
) -> Plan:
    """A plan of 30 steps, unless ``run`` says otherwise."""
    budget = {} if {"epochs", "seconds"} & set(run) else {"steps": 30}
    settings = RunSettings(**{"log_every": 4, "checkpoint_every": 3, "eval_every": 7, **budget, **run})
    resolved = {"run": {k: v for k, v in vars(settings).items() if v is not None}}
    return Plan(
        settings,
        task or Restless(),
        method,
        "curved",
        Uniform(),
        Full(),
        reporters=reporters,
        resolved=resolved,
        given="# small\n",
    )


def run_small(out: Path, plan: Plan | None = None, *, resume: Path | None = None) -> Run:
    """Train it, keeping its folder."""
    return train_plan(plan or small_plan(), out=out, log=RunLog, resume_from=resume)


def parameters(run: Run) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name."""
    return {**dict(run.model.named_parameters()), **dict(run.model.named_buffers())}


def same(a: Run, b: Run) -> None:
    assert parameters(a).keys() == parameters(b).keys()
    for name, tensor in parameters(a).items():
        assert torch.equal(tensor, parameters(b)[name]), name


def last_tensors(folder: Path) -> bytes:
    found = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    return (found[0].path / "tensors.safetensors").read_bytes()


class StopAt(Reporter):
    """Sends this process a signal when a step is logged."""

    def __init__(self, step: int, *signals: signal.Signals) -> None:
        self.step, self.signals = step, signals

    def stepped(self, record: StepRecord) -> None:
        if record.step == self.step:
            for number in self.signals:
                signal.raise_signal(number)


def stopped_at(
    out: Path, step: int, *signals: signal.Signals, plan: Plan | None = None
) -> tuple[Path, Stopped]:
    """A run that is sent signals after ``step``; its folder and what it ended with."""
    plan = plan or small_plan(log_every=1)
    with pytest.raises(Stopped) as stopped:
        train_plan(plan, out=out, log=RunLog, listeners=(StopAt(step, *signals),))
    return max(out.iterdir()), stopped.value
