"""The gradient that a search ends with begins the next step, on the same function and on no other."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from curvlab.config import build, load
from curvlab.engine.training import prepare
from curvlab.errors import Diverged
from curvlab.objectives.supervised import objective
from curvlab.registry.loader import installed

ONCE = {"step.reuse": False}
STEPS = 8


@contextmanager
def counted(model: nn.Module, dtype: torch.dtype | None = None) -> Iterator[list[int]]:
    """How often the model is called for a gradient; seen from outside."""
    calls = [0]

    def seen(module: nn.Module, inputs: Any, outputs: Any) -> None:
        calls[0] += module is model and torch.is_grad_enabled()

    handle = register_module_forward_hook(seen)
    try:
        yield calls
    finally:
        handle.remove()


class Net(nn.Module):
    """Layers, and whatever else a case wants in between."""

    def __init__(self, *inner: nn.Module) -> None:
        super().__init__()
        self.scale, self.calls = 1.0, [0]
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), *inner, nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) * self.scale  # type: ignore[no-any-return]


class Counting(Net):
    """A model that is another function with every call."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls[0] += 1
        return super().forward(x) * (1 + 0.01 * (self.calls[0] % 3))


class Smoothed(nn.Module):
    """A criterion with a setting that its user changes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = 0.0

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets) + self.weight * outputs.square().mean()


@dataclass
class Case:
    """A run, step by step; ``change`` is called between steps."""

    inner: tuple[nn.Module, ...] = ()
    change: Callable[[Case, int], None] = lambda case, k: None
    kind: type[Net] = Net
    dtype: torch.dtype = torch.float64
    micro_batch: int | None = None
    cast: bool = False
    knobs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.model = self.kind(*map(copy.deepcopy, self.inner)).to(self.dtype)
        self.x = torch.randn(20, 6, dtype=self.dtype)
        self.y = torch.arange(20) % 3
        self.criterion: Any = nn.CrossEntropyLoss()

    def run(self, make: Any, settings: dict[str, Any]) -> tuple[list[int], list[Tensor]]:
        """Gradients and parameters of every step."""
        ours, counts, found = make(self.model, settings=settings, **self.knobs), [], []
        with counted(self.model) as calls:
            for k in range(STEPS):
                before = calls[0]
                under = torch.autocast("cpu", dtype=torch.bfloat16) if self.cast else nullcontext()
                with under:
                    ours.step(
                        objective(self.model, self.criterion, self.x, self.y, micro_batch=self.micro_batch)
                    )
                chunks = -(-len(self.x) // (self.micro_batch or len(self.x)))
                counts.append((calls[0] - before) // chunks)
                found.append(torch.cat([p.detach().flatten().clone() for p in self.model.parameters()]))
                self.change(self, k)
        return counts, found


def both(make: Any, **case: Any) -> tuple[list[int], list[int]]:
    """Counts with reuse and without; the iterates are the same, bit for bit."""
    reused, fresh = (Case(**case).run(make, settings) for settings in ({}, ONCE))
    for k, (a, b) in enumerate(zip(reused[1], fresh[1], strict=True)):
        assert torch.equal(a, b), f"iterate {k}"
    return reused[0], fresh[0]


def copied(case: Case, k: int) -> None:
    case.x, case.y = case.x.clone(), case.y.clone()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("micro_batch", [None, 7])
@pytest.mark.parametrize("change", [lambda case, k: None, copied], ids=["tensors", "copies"])
def test_on_the_same_examples_each_gradient_is_evaluated_once(
    dtype: torch.dtype, micro_batch: int | None, change: Any, optimizer: Any
) -> None:
    """A step costs its trials alone, one as a rule: half of what it costs without."""
    reused, fresh = both(optimizer, dtype=dtype, micro_batch=micro_batch, change=change)
    assert reused == [fresh[0], *(n - 1 for n in fresh[1:])]
    assert min(reused[1:]) == 1


def test_rejected_steps_know_their_gradient_too(optimizer: Any) -> None:
    """One try of a rate that is too far: the step is rejected, and θ is where it was."""
    reused, fresh = both(optimizer, knobs={"tries": 1, "lr": 1e5})
    assert fresh == [2] * STEPS
    assert reused == [2] + [1] * (STEPS - 1)


def test_under_autocast(optimizer: Any) -> None:
    reused, fresh = both(optimizer, dtype=torch.float32, cast=True)
    assert sum(reused) == sum(fresh) - STEPS + 1


def fresh_batch(case: Case, k: int) -> None:
    case.x = torch.randn(20, 6, dtype=case.dtype, generator=torch.Generator().manual_seed(k))


def refilled(case: Case, k: int) -> None:
    """Through another view of the memory, which torch's version counters do not see."""
    case.x.numpy()[k, 0] += 1e-9


def other_targets(case: Case, k: int) -> None:
    case.y = case.y.roll(1)


def moved(case: Case, k: int) -> None:
    next(case.model.parameters()).data[0, 0] += 1e-9


def other_weight(case: Case, k: int) -> None:
    if k == 0:
        case.criterion = Smoothed()
    case.criterion.weight += 0.1


def other_function(case: Case, k: int) -> None:
    case.criterion = lambda out, y: nn.functional.cross_entropy(out, y) * (1 + 0.1 * k)


def other_scale(case: Case, k: int) -> None:
    case.model.scale *= 1.01


def other_mode(case: Case, k: int) -> None:
    case.model.train(k % 2 == 1)


def unfrozen(case: Case, k: int) -> None:
    case.model.layers[0].requires_grad_(k % 2 == 1)


@pytest.mark.parametrize(
    "case",
    [
        {"change": fresh_batch},
        {"change": refilled},
        {"change": other_targets},
        {"change": moved},
        {"change": other_weight},
        {"change": other_function},
        {"change": other_scale},
        {"inner": (nn.Dropout(0.2),)},
        {"inner": (nn.BatchNorm1d(8),)},
        {"kind": Counting},
        {"change": other_mode},
    ],
    ids=lambda case: getattr(next(iter(case.values())), "__name__", "inner"),
)
def test_another_function_is_evaluated(case: Any, optimizer: Any) -> None:
    reused, fresh = both(optimizer, **case)
    assert reused == fresh


def test_parameters_that_thaw_are_evaluated(optimizer: Any) -> None:
    both(optimizer, change=unfrozen)


def test_a_batch_that_comes_again_is_reused_from_then_on(optimizer: Any) -> None:
    def change(case: Case, k: int) -> None:
        fresh_batch(case, ord("AABBBAAA"[k]))

    reused, fresh = both(optimizer, change=change)
    # the first batch, then A, A, B, B, B, A, A
    assert [b - a for a, b in zip(reused, fresh, strict=True)] == [0, 0, 1, 0, 1, 1, 0, 1]


def test_a_step_that_fails_before_the_write_keeps_what_is_known(optimizer: Any) -> None:
    """Its objective cannot be searched; the next step on the old one is as if it had not been tried."""
    case, twin = Case(), Case()
    ours, theirs = optimizer(case.model), optimizer(twin.model)
    for k in range(4):
        for c, o in ((case, ours), (twin, theirs)):
            o.step(objective(c.model, c.criterion, c.x, c.y))
        with pytest.raises(Diverged):
            ours.step(objective(case.model, case.criterion, case.x * torch.inf, case.y))
        assert torch.equal(next(case.model.parameters()), next(twin.model.parameters())), k


@pytest.mark.parametrize(
    ("sampler", "same"),
    [
        ({"use": "full-batch"}, True),
        ({"use": "geometric", "gradient": 200, "gradient_growth": 1.0, "nested": True}, True),
        ({"use": "uniform"}, False),
    ],
    ids=lambda value: value["use"] if isinstance(value, dict) else "",
)
def test_in_a_run_it_depends_on_what_the_sampler_draws(sampler: Any, same: bool) -> None:
    registry, found = installed(), []
    for reuse in (True, False):
        method = {"use": "lbfgs", "step": {"reuse": reuse}}
        data = {"run": {"steps": 6}, "task": "digits", "method": method, "sampler": sampler}
        plan = build(load(data=data), registry)
        torch.manual_seed(0)
        training = prepare(plan, lambda event: None)
        counts = []
        with counted(training.workload.model) as calls:
            for _ in range(6):
                before = calls[0]
                draw = training.samples.draw()
                training.optimizer.step(training.workload.objective(draw))
                counts.append(calls[0] - before)
        found.append((counts, [p.detach().clone() for p in training.workload.model.parameters()]))
    (reused, mine), (fresh, theirs) = found
    assert all(map(torch.equal, mine, theirs))
    assert reused == ([fresh[0], *(n - 1 for n in fresh[1:])] if same else fresh)
