"""The suite of tasks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.errors import DataError
from curvlab.model.partition import partition
from curvlab.protocols.blocks import as_real
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Task, Workload
from curvlab.testing.conformance.bench import context
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.suite import Conformance
from curvlab.testing.surroundings import Surroundings

#: examples of a draw
FEW = 4

#: seconds that metrics may take to be computed twice
PATIENCE = 5.0


@dataclass(frozen=True)
class Measured:
    """Metrics, the tensors of the model that changed meanwhile, whether modes did, and how long it took."""

    metrics: Mapping[str, float]
    changed: list[str]
    modes: bool
    seconds: float


class TaskConformance(Conformance):
    """A recipe: that it makes one problem, and that what is asked of the problem is what it answers."""

    kind = "task"
    part: Task

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    @cached_property
    def single(self) -> Workload:
        """The task in float32."""
        return self.workload(torch.float32)

    @cached_property
    def double(self) -> Workload:
        """The task in float64."""
        return self.workload(torch.float64)

    @cached_property
    def measured(self) -> Measured:
        """The metrics in float32, and what computing them did to the model."""
        work = self.single
        before, modes, start = _tensors(work.model), _modes(work.model), time.perf_counter()
        found = work.metrics()
        seconds = time.perf_counter() - start
        wrong = [n for n, t in _tensors(work.model).items() if not torch.equal(t, before[n])]
        return Measured(dict(found), wrong, _modes(work.model) != modes, seconds)

    def model(self, seed: int = 0) -> nn.Module:
        """A model drawn with this seed; skips the check if the data that it depends on are not here."""
        torch.manual_seed(seed)
        with skipping_without_data():
            return self.part.model()

    def workload(self, dtype: torch.dtype, model: nn.Module | None = None) -> Workload:
        """The task at work; skips the check if its data are not here."""
        live = self.model() if model is None else model
        with skipping_without_data():
            return self.part.workload(live, dtype=dtype, device=torch.device("cpu"))

    def objective(self, work: Workload, start: int = 0) -> Objective:
        """On the first few examples."""
        sample = torch.arange(start, min(start + FEW, work.size))
        return work.objective(Draw(sample, sample, sample))

    def evaluate(self, work: Workload) -> Evaluation:
        """Loss and gradient on the first few examples."""
        blocks = partition(work.model, lambda layer: False)
        return self.objective(work).evaluate(Needs(), blocks, context(0))

    @check()
    def check_obligations(self) -> None:
        """A model with parameters, training examples, a batch size, and the metric that it is judged by."""
        assert self.part.batch_size >= 1, f"{self.name}.batch_size is {self.part.batch_size!r}"
        work = self.double
        assert isinstance(work, Workload), (
            f"{self.name}.workload must return a Workload, not a {type(work).__name__}"
        )
        assert work.size >= 1, f"{type(work).__name__}.size is {work.size!r}: there are no training examples"
        trained = [p for p in work.model.parameters() if p.requires_grad]
        assert trained, f"{self.name}.model() has no parameter that requires a gradient"
        metric, more_is_better = self.part.judged_by
        assert isinstance(more_is_better, bool), f"{self.name}.judged_by must be (metric, bool)"
        found = self.measured.metrics
        assert metric in found, (
            f"{self.name}.judged_by is {metric!r}, and metrics() returns only {', '.join(found)}"
        )

    @check()
    def check_model(self) -> None:
        """``model`` draws from torch's global generator: of one seed always the same, of another not."""
        a, b, other = (_flat(self.model(seed)) for seed in (0, 0, 1))
        assert torch.equal(a, b), f"{self.name}.model() differs between two calls with the same seed"
        assert not torch.equal(a, other), f"{self.name}.model() does not depend on torch's seed"

    @check()
    def check_random_state(self) -> None:
        """The data draw from generators of their own: the global one belongs to the model."""
        model = self.model()
        before = Surroundings.now()
        self.workload(torch.float32, model)
        changed = before.random_changes()
        assert not changed, f"{self.name}.workload draws from {', '.join(changed)}"

    @check()
    def check_dtypes(self) -> None:
        """Model and data take the dtype that is asked for (complex: its parts); the loss is the same."""
        losses = {}
        for work, dtype in ((self.single, torch.float32), (self.double, torch.float64)):
            wrong = {str(as_real(p).dtype) for p in work.model.parameters()} - {str(dtype)}
            assert not wrong, f"{self.name}.workload(dtype={dtype}): parameters are {', '.join(wrong)}"
            losses[dtype] = float(self.evaluate(work).loss)
        a, b = losses.values()
        assert abs(a - b) <= 1e-3 * max(1.0, abs(b)), (
            f"{self.name}: the loss is {a} in float32, {b} in float64"
        )

    @check()
    def check_gradient(self) -> None:
        """The evaluation's gradient is that of the loss, and what the closure leaves behind."""
        work = self.double
        seen = self.evaluate(work)
        assert math.isfinite(float(seen.loss)), f"{self.name}: the loss is {float(seen.loss)}"
        objective = self.objective(work)
        blocks = partition(work.model, lambda layer: False)
        direction = seen.gradient * (1.0 / max(float(seen.gradient.norm()), 1e-30))
        slots, h = blocks.slots(direction), 1e-5

        def at(step: float) -> float:
            return float(
                objective.loss({n: p.detach() + step * slots[n] for n, p in blocks.parameters.items()})
            )

        found, expected = (at(h) - at(-h)) / (2 * h), float(seen.gradient.norm())
        scale = max(abs(expected), 1e-3)
        assert abs(found - expected) <= 1e-3 * scale, (
            f"{self.name}: along its gradient the loss rises at {found:.8g}, ‖gradient‖ is {expected:.8g}"
        )
        objective()
        left = blocks.pack({n: p.grad for n, p in blocks.parameters.items()})
        off = float((left - seen.gradient).norm())
        assert off <= 1e-8 * scale, (
            f"{self.name}: objective() leaves a gradient that differs from that of evaluate"
        )

    @check()
    def check_pure(self) -> None:
        """Trial losses and metrics change no parameter, buffer or mode, and are the same again."""
        work = self.double
        before = _tensors(work.model)
        objective = self.objective(work)
        losses = [float(objective.loss()) for _ in range(2)]
        wrong = [n for n, t in _tensors(work.model).items() if not torch.equal(t, before[n])]
        assert not wrong, f"{self.name}: loss() changes {', '.join(wrong)}"
        assert losses[0] == losses[1], f"{self.name}: two calls of loss() return {losses}"
        first = self.measured
        assert not first.changed, f"{self.name}: metrics() changes {', '.join(first.changed)}"
        assert not first.modes, f"{self.name}: metrics() changes the mode of modules (train or eval)"
        if first.seconds < PATIENCE:
            again = dict(self.single.metrics())
            assert again == first.metrics, (
                f"{self.name}: two calls of metrics() return {first.metrics} and {again}"
            )

    @check()
    def check_metrics(self) -> None:
        """Metrics are finite floats by name."""
        for name, value in self.measured.metrics.items():
            assert isinstance(value, float), f"{self.name}: metric {name} must be a float, not {value!r}"
            assert math.isfinite(value), f"{self.name}: metric {name} is {value}"

    @check()
    def check_draws(self) -> None:
        """The loss averages the drawn examples, and the acceptance sample's where that is another."""
        work = self.double
        if work.size < 2 * FEW:
            raise Skipped(f"{work.size} examples are too few to compare samples")
        first, second = torch.arange(FEW), torch.arange(work.size - FEW, work.size)
        apart = [float(work.objective(Draw(s, s, s)).loss()) for s in (first, second)]
        mixed = work.objective(Draw(first, first, second))
        seen = mixed.evaluate(Needs(), partition(work.model, lambda layer: False), context(0))
        assert seen.examples == FEW, f"{self.name}: Evaluation.examples is {seen.examples} for {FEW} drawn"
        found = [float(seen.loss), float(mixed.loss())]
        close = all(
            math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) for a, b in zip(found, apart, strict=True)
        )
        assert close, f"{self.name}: gradient and acceptance loss {found}, of these samples alone {apart}"


@contextmanager
def skipping_without_data() -> Iterator[None]:
    """Skip the check if the data are not on this machine."""
    try:
        yield
    except DataError as error:
        raise Skipped(f"the data of the task are missing: {error}") from error


def _flat(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    found: dict[str, Any] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {n: t.detach().clone() for n, t in found.items()}


def _modes(model: nn.Module) -> list[bool]:
    return [m.training for m in model.modules()]
