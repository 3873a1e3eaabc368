"""A second evaluation of a step's batch (``Needs.after``): where, for which blocks, and when."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.objectives.supervised import objective
from curvlab.parts.damping import Constant
from curvlab.parts.identity import Identity
from curvlab.parts.routed import Routed
from curvlab.parts.steps import Rate
from curvlab.precision.full import Full
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, Step, StepOutcome
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab.protocols.step import StepRule
from curvlab.testing.asserts import assert_close
from tests.engine.composed import batch, network

CRITERION = nn.CrossEntropyLoss()


@dataclass
class Seen:
    """θ before and after, by block, and the evaluation after; no state."""

    before: list[dict[str, Tensor]] = field(default_factory=list)
    after: list[dict[str, Tensor]] = field(default_factory=list)
    evaluations: list[Evaluation | None] = field(default_factory=list)


@dataclass(frozen=True)
class Looking(Preconditioner[None]):
    """The identity on layers, every other step of which looks at where it led."""

    seen: Seen

    def needs(self, step: int) -> Needs:
        return Needs.statistics(Labels.DATA) | Needs(after=step % 2 == 0)

    def joins(self, layer: str) -> bool:
        return True

    def refuses(self, block: Block) -> str | None:
        return block.refusal(tied=False)

    def init(self, like: Any, ctx: Context) -> None:
        return None

    def observe(self, state: None, seen: Evaluation, ctx: Context) -> None:
        if seen.theta is not None:
            self.seen.before.append({n: t.clone() for n, t in seen.theta().items()})

    def apply(self, state: None, v: Any, ctx: Context) -> Solve:
        return Solve(v.borrow())

    def learn(self, state: None, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        self.seen.evaluations.append(what.after)
        if what.after is not None and what.after.theta is not None:
            self.seen.after.append({n: t.clone() for n, t in what.after.theta().items()})
        return ()


@dataclass(frozen=True)
class Refusing(StepRule[None]):
    """Takes no step."""

    def rate(self, step: int) -> float:
        return 1.0

    def init(self, like: Any) -> None:
        return None

    def search(self, state: None, line: Line, step: int) -> Step:
        return Step(line.update, 0.0, accepted=False)


def made(seen: Seen, model: nn.Module, rule: StepRule[Any], *, route: bool = False) -> CurvatureOptimizer:
    part: Preconditioner[Any] = Looking(seen)
    if route:
        part = Routed({"0": part, "*": Identity()})
    fallback = Method(Identity(), Constant(0.0), Rate(0.1))
    method = Method(part, Constant(0.0), rule, fallback=fallback)
    return CurvatureOptimizer(method, model, backend=Full("float64"))


@pytest.mark.parametrize("route", [False, True])
def test_it_is_the_same_batch_at_the_parameters_after_the_step(route: bool) -> None:
    seen, model, (x, y) = Seen(), network(), batch(0)
    ours = made(seen, model, Rate(0.1), route=route)
    own = ["0"] if route else ["0", "3"]
    for step in range(3):
        before = ours.blocks.read()
        before = {n: before[n].clone() for n in own}
        ours.step(objective(model, CRITERION, x, y))
        last = seen.evaluations[-1]
        if step == 1:
            assert last is None, "nobody asked for it in this step"
            continue
        assert last is not None
        now = ours.blocks.read()
        assert sorted(seen.before[-1]) == sorted(seen.after[-1]) == own
        for name in own:
            assert torch.equal(seen.before[-1][name], before[name])
            assert torch.equal(seen.after[-1][name], now[name])
        bias = torch.autograd.grad(CRITERION(model(x), y), model[0].bias)[0]
        (rows,) = last.layers[Labels.DATA]["0"]
        assert rows.grads is not None
        assert_close(rows.grads[0].sum(1).mean(0), bias, dimension=len(x))
        assert sorted(last.layers[Labels.DATA]) == own


def test_there_is_none_where_no_parameter_moved() -> None:
    seen, model = Seen(), nn.Linear(4, 3).double()
    ours, calls = made(seen, model, Refusing()), list[int]()
    model.register_forward_hook(lambda *args: calls.append(1))
    ours.step(objective(model, CRITERION, *batch(0)))
    assert seen.evaluations == [None]
    assert len(calls) == 1


def test_needs_are_united_and_refused_in_a_plain_loop() -> None:
    united = Needs() | Needs(after=True)
    assert united.after
    assert united.objective == ("a second evaluation of the batch, after the step",)
    assert not (Needs() | Needs(factored=True)).after
