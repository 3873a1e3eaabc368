"""A step happens or it does not: what fails leaves no trace, in every method and in both loops.

Methods come from the registry.  A *trace* is any bit of parameters, states, counters, rates or the generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.config import build_method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.errors import Diverged
from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.supervised import objective
from curvlab.precision.full import Full
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, StepOutcome
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab.testing.problems import DTYPE
from tests.limits.registered import knobs_of, optimizer, registry
from tests.limits.test_every_method import Knobs, cases, image_batches, images, plain_cases

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::curvlab.objectives.evaluation.LayerMismatch"),
]

Batch = tuple[Tensor, Tensor]


class Spoiled(nn.Module):
    """Adds zero; on demand, with a gradient that is not finite although the value is."""

    def __init__(self) -> None:
        super().__init__()
        self.steep = False

    def forward(self, x: Tensor) -> Tensor:
        """The input itself."""
        return x + (x - x.detach()).sqrt() if self.steep else x


def network() -> nn.Module:
    return nn.Sequential(*images(), Spoiled())


def of_objective(ours: CurvatureOptimizer, batch: Batch) -> None:
    ours.step(objective(ours.model, nn.CrossEntropyLoss(), *batch))


def plain(ours: CurvatureOptimizer, batch: Batch) -> None:
    ours.zero_grad()
    nn.CrossEntropyLoss()(ours.model(batch[0]), batch[1]).backward()
    ours.step()


def everything(ours: CurvatureOptimizer) -> dict[str, Any]:
    """Every bit that a step may change."""
    tensors, rest = ours.snapshot()
    model = {f"θ/{n}": p.detach().clone() for n, p in ours.model.named_parameters()}
    return {**model, **{n: t.clone() for n, t in tensors.items()}, **rest}


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    return bool(a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)))


def differing(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    return sorted(set(a) ^ set(b)) + [n for n in a if n in b and not same(a[n], b[n])]


def spoil(kind: str, model: nn.Module, batch: Batch) -> Batch:
    x, y = batch
    if kind == "steep":
        model[-1].steep = True
        return batch
    x = x.clone()
    x[3, 2] = {"nan": math.nan, "inf": math.inf, "huge": 1e200}[kind]
    return x, y


@pytest.mark.parametrize("kind", ["nan", "steep"])
@pytest.mark.parametrize(
    ("name", "knobs", "step"),
    [
        pytest.param(*case.values, way, id=f"{case.id}-{words}")
        for words, way, found in (("objective", of_objective, cases()), ("plain", plain, plain_cases()))
        for case in found
    ],
)
def test_one_bad_batch_leaves_no_trace(
    name: str, knobs: Knobs, step: Callable[[CurvatureOptimizer, Batch], None], kind: str
) -> None:
    """Before the bad one and after it, training is that of a twin that never sees it, to the bit."""
    batches = image_batches()
    ours, twin = (optimizer(name, network(), **dict(knobs)) for _ in range(2))
    for k, batch in enumerate(batches[:4]):
        before = everything(ours)
        with pytest.raises(Diverged):
            step(ours, spoil(kind, ours.model, batch))
        ours.model[-1].steep = False
        assert not differing(everything(ours), before), f"step {k}"
        step(ours, batch)
        step(twin, batch)
    assert not differing(everything(ours), everything(twin))


@pytest.mark.parametrize("name", ["sgd", "adamw", "kfac", "ekfac", "singd", "soap", "muon"])
def test_a_state_that_is_not_finite_ends_the_run_by_name_and_moves_nothing(name: str) -> None:
    """Whoever wrote it there; and a finite number in its place goes on as if nothing had been."""
    ours = optimizer(name, network())
    for batch in image_batches()[:2]:
        of_objective(ours, batch)
    for path, tensor in ours.snapshot()[0].items():
        if not tensor.is_floating_point():
            continue
        entry = tensor.view(-1) if tensor.is_contiguous() else tensor.T.view(-1)
        kept, entry[0] = float(entry[0]), math.inf
        before = everything(ours)
        with pytest.raises(Diverged, match=r"state of .* is not finite"):
            of_objective(ours, image_batches()[2])
        assert not differing(everything(ours), before), path
        entry[0] = kept
    of_objective(ours, image_batches()[2])


def test_a_step_under_which_parameters_overflow_is_not_taken() -> None:
    """A finite gradient and a finite state, and a rate that is too much for them."""
    model = nn.Linear(3, 1).to(DTYPE)
    ours = optimizer("sgd", model)
    ours.param_groups[0]["lr"] = 1e306  # beyond what a setting may be
    before = everything(ours)
    (model(torch.full((2, 3), 1e3, dtype=DTYPE))).sum().backward()
    with pytest.raises(Diverged, match="parameters would not be finite"):
        ours.step()
    assert not differing(everything(ours), before)


@dataclass(frozen=True)
class Failing(Preconditioner[Any]):
    """Another part, whose update is not finite on one step, whatever the damping."""

    inner: Preconditioner[Any]
    on: set[int]

    def needs(self, step: int) -> Needs:
        return self.inner.needs(step)

    def joins(self, layer: str) -> bool:
        return self.inner.joins(layer)

    def refuses(self, block: Block) -> str | None:
        return self.inner.refuses(block)

    def settled(self, blocks: Sequence[Block]) -> Failing:
        return Failing(self.inner.settled(blocks), self.on)

    def init(self, like: BlockVector, ctx: Context) -> Any:
        return self.inner.init(like, ctx)

    def observe(self, state: Any, seen: Evaluation, ctx: Context) -> None:
        self.inner.observe(state, seen, ctx)

    def refresh(self, state: Any, ctx: Context) -> None:
        self.inner.refresh(state, ctx)

    def apply(self, state: Any, v: BlockVector, ctx: Context) -> Solve:
        solve = self.inner.apply(state, v, ctx)
        if not self.on:
            return solve
        x = solve.x.clone()
        x.flat[0] = math.nan
        return replace(solve, x=x)

    @property
    def iterates(self) -> bool:
        return self.inner.iterates

    def learn(self, state: Any, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        return self.inner.learn(state, what, ctx)


@pytest.mark.parametrize("fallback", [False, True], ids=["the method", "its fallback"])
@pytest.mark.parametrize("name", ["adamw", "kfac", "ekfac", "singd", "soap", "hf-gn"])
def test_an_update_that_no_damping_makes_finite_leaves_no_trace(name: str, fallback: bool) -> None:
    """Factors, inverses, moments and counters of that step are taken back, those of the other part too."""
    if fallback and name not in ("kfac", "ekfac", "singd"):
        pytest.skip("treats every parameter itself")
    failing: set[int] = set()

    def built(failing: set[int]) -> CurvatureOptimizer:
        knobs = {"refresh": 2} if "refresh" in knobs_of(name) else {}
        method = build_method(registry(), name, knobs)
        owner = method.fallback if fallback else method
        assert owner is not None
        bad = replace(owner, preconditioner=Failing(owner.preconditioner, failing), knobs={})
        method = replace(method, fallback=bad) if fallback else bad
        return CurvatureOptimizer(method, network(), backend=Full("float64"), name=name)

    ours, twin = built(failing), built(set())
    for k, batch in enumerate(image_batches()):
        before = everything(ours)
        failing.add(k)
        with pytest.raises(Diverged, match="damping up to"):
            of_objective(ours, batch)
        failing.clear()
        assert not differing(everything(ours), before), f"step {k}"
        of_objective(ours, batch)
        of_objective(twin, batch)
    assert not differing(everything(ours), everything(twin))


def test_an_error_in_the_callers_own_code_leaves_no_trace_either() -> None:
    """A trial loss that raises, in the middle of a search."""
    ours = optimizer("sgd", network())
    of_objective(ours, image_batches()[0])
    before = everything(ours)

    def closure() -> Tensor:
        torch.rand(1, generator=ours.generator)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        ours.step(closure)
    assert not differing(everything(ours), before)


def test_numbers_whose_squares_overflow_still_train() -> None:
    """Large is not infinite: such steps are taken with care, not refused."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1).to(DTYPE)
    ours = optimizer("sgd", model, lr=1e-200)
    x, y = torch.full((2, 3), 1e160, dtype=DTYPE), torch.zeros(2, 1, dtype=DTYPE)
    for _ in range(2):
        ours.zero_grad()
        (model(x) - y).sum().mul(1e30).backward()
        ours.step()
    assert ours.steps == 2
    assert all(bool(p.isfinite().all()) for p in model.parameters())
