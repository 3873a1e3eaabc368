"""One step: what is called when, with what, and the one write."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from curvlab.engine.admission import Admitted, Risk
from curvlab.engine.arms import Arm
from curvlab.engine.method import Method
from curvlab.engine.optimizer import CurvatureOptimizer
from curvlab.engine.planned import PlannedUpdate
from curvlab.engine.rates import ParameterRates
from curvlab.engine.undo import Undo
from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.supervised import SupervisedObjective, objective
from curvlab.parts.damping import Constant, LevenbergMarquardt
from curvlab.parts.identity import Identity
from curvlab.parts.steps import Armijo, Rate
from curvlab.parts.transforms import WeightDecay
from curvlab.precision.full import Full
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve, Step, StepOutcome
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.report import Event
from curvlab.protocols.step import At, Damping, StepRule, Transform
from tests.engine.listening import listening


@dataclass
class Diary:
    """What the parts were told, in order; not a state, so shared by all of them."""

    said: list[Any] = field(default_factory=list)


@dataclass(frozen=True)
class Noted(Preconditioner[None]):
    """Doubles the gradient and writes down every call."""

    diary: Diary

    def init(self, like: BlockVector, ctx: Context) -> None:
        return None

    def observe(self, state: None, seen: Evaluation, ctx: Context) -> None:
        self.diary.said.append(("observe", ctx.step, ctx.damping))

    def refresh(self, state: None, ctx: Context) -> None:
        self.diary.said.append(("refresh", ctx.step, ctx.damping))

    def apply(self, state: None, v: BlockVector, ctx: Context) -> Solve:
        self.diary.said.append(("apply", ctx.step, ctx.damping))
        return Solve(v * 2.0, iterations=3)

    def learn(self, state: None, what: StepOutcome, ctx: Context) -> tuple[Event, ...]:
        self.diary.said.append(("learn", ctx.step, ctx.damping))
        return ()


@dataclass(frozen=True)
class Plus(Transform[None]):
    """Adds a constant and writes down where it stands."""

    diary: Diary
    name: str
    by: float = 1.0

    def init(self, like: BlockVector) -> None:
        return None

    def __call__(self, state: None, v: BlockVector, at: At) -> BlockVector:
        self.diary.said.append((self.name, at.step, at.lr))
        out = v.owned()
        out.flat.add_(self.by)
        return out


@dataclass(frozen=True)
class NotedDamping(Damping[None]):
    """A constant that writes down what it learns from."""

    diary: Diary

    def init(self) -> None:
        return None

    def at(self, state: None, step: int) -> float:
        return 0.25

    def learn(self, state: None, what: StepOutcome, step: int) -> None:
        self.diary.said.append(("damping", step, what.ratio))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batch() -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(8, 4, generator=g, dtype=torch.float64), torch.randn(
        8, 3, generator=g, dtype=torch.float64
    )


def optimizer(
    method: Method, model: nn.Module, heard: Callable[[StepOutcome], object] | None = None
) -> CurvatureOptimizer:
    samples = None if heard is None else listening(heard)
    return CurvatureOptimizer(method, model, backend=Full("float64"), samples=samples)


def asked(model: nn.Module) -> SupervisedObjective:
    return objective(model, nn.MSELoss(), *batch())


def gradients(model: nn.Module) -> list[Tensor]:
    x, y = batch()
    return list(torch.autograd.grad(F.mse_loss(model(x), y), list(model.parameters())))


def test_parts_are_called_in_the_order_of_a_step_each_once() -> None:
    model, diary = network(), Diary()
    method = Method(
        Noted(diary),
        NotedDamping(diary),
        Rate(0.1),
        on_gradient=(Plus(diary, "first"), Plus(diary, "second")),
        on_update=(Plus(diary, "third"), Plus(diary, "fourth")),
    )
    opt = optimizer(method, model)
    for k in range(2):
        diary.said.clear()
        opt.step(asked(model))
        assert diary.said == [
            ("observe", k, 0.25),
            ("first", k, 0.1),
            ("second", k, 0.1),
            ("refresh", k, 0.25),
            ("apply", k, 0.25),
            ("third", k, 0.1),
            ("fourth", k, 0.1),
            ("learn", k, 0.25),
            ("damping", k, None),
        ]


def test_the_one_write_subtracts_alpha_times_the_transformed_solution() -> None:
    model, diary = network(), Diary()
    g, before = gradients(model), [p.detach().clone() for p in model.parameters()]
    method = Method(
        Noted(diary),
        Constant(),
        Rate(0.1),
        on_gradient=(Plus(diary, "g", 1.0),),
        on_update=(Plus(diary, "u", 5.0),),
    )
    optimizer(method, model).step(asked(model))
    for p, old, each in zip(model.parameters(), before, g, strict=True):
        torch.testing.assert_close(p.detach(), old - 0.1 * (2.0 * (each + 1.0) + 5.0))


@dataclass(frozen=True)
class Late(Noted):
    """Not ready in the first step."""

    def ready(self, state: None) -> bool:
        return ("observe", 1, 20.0) in self.diary.said


def test_until_the_preconditioner_is_ready_a_step_observes_and_counts_and_nothing_else() -> None:
    """With a search, an adaptive λ and weight decay: only the preconditioner takes part in the first step."""
    model, diary, events = network(), Diary(), list[Event]()
    decay, learned = WeightDecay(0.1), list[StepOutcome]()
    method = Method(
        Late(diary), LevenbergMarquardt(initial=20.0), Armijo(0.1), (Plus(diary, "g", 0.0),), (decay,)
    )
    opt = optimizer(method, model, learned.append)
    opt.on_event = events.append
    start = [p.detach().clone() for p in model.parameters()]
    loss = opt.step(asked(model))
    assert diary.said == [("observe", 0, 20.0)]
    assert all(map(torch.equal, start, model.parameters()))
    assert float(loss) == float(asked(model).loss(dict(model.named_parameters())))
    assert [(e.name, e.step, e.detail) for e in events] == [
        ("preconditioner-initialized", 0, {"arm": "method"})
    ]
    assert [what.step.accepted for what in learned] == [False]
    assert opt.last is not None
    assert (opt.steps, opt.last.accepted, opt.last.lr) == (1, False, 0.0)
    diary.said.clear()
    opt.step(asked(model))
    assert diary.said[0] == ("observe", 1, 20.0)
    assert {"g", "refresh", "apply", "learn"} <= {said[0] for said in diary.said}
    assert not any(map(torch.equal, start, model.parameters()))


def test_a_transforms_rate_is_the_rules_times_what_torchs_lr_makes_of_it() -> None:
    model, diary = network(), Diary()
    opt = optimizer(Method(Identity(), Constant(), Rate(0.1), on_update=(Plus(diary, "u"),)), model)
    opt.param_groups[0]["lr"] = 0.05
    opt.step(asked(model))
    assert diary.said == [("u", 0, pytest.approx(0.05))]


def test_transforms_of_the_gradient_leave_the_evidence_alone() -> None:
    model, diary = network(), Diary()
    arm = optimizer(Method(Identity(), Constant(), Rate(0.1), on_gradient=(Plus(diary, "g"),)), model).arms[0]
    gradient = arm.blocks.pack(dict(zip(arm.blocks.parameters, gradients(model), strict=True)))
    kept = gradient.flat.clone()
    seen, risk = Evaluation(8, torch.zeros(()), gradient), Risk(False, False, False)
    admitted = Admitted(arm, seen, ParameterRates(arm.blocks), risk)
    plan = PlannedUpdate(admitted, context(arm), lambda event: None, Undo(torch.Generator()))
    plan.transform_gradient()
    v, at = plan.gradient, plan.at
    torch.testing.assert_close(v.flat, kept + 1.0)
    assert torch.equal(at.gradient.flat, kept)
    assert torch.equal(at.read().flat, arm.blocks.read().flat)
    at.add_theta(v, 2.0)
    torch.testing.assert_close(v.flat, kept + 1.0 + 2.0 * arm.blocks.read().flat)


def context(arm: Arm) -> Context:
    return Context(0, 0.0, Full("float64"), torch.Generator())


@dataclass(frozen=True)
class Refusing(StepRule[None]):
    """Rejects every step, though it has an update that would move."""

    def rate(self, step: int) -> float:
        return 1.0

    def init(self, like: BlockVector) -> None:
        return None

    def search(self, state: None, line: Line, step: int) -> Step:
        return Step(line.update, 1.0, accepted=False)


def test_a_rejected_step_moves_nothing_is_told_of_and_learned_from() -> None:
    model, diary, events = network(), Diary(), []
    method = Method(Noted(diary), NotedDamping(diary), Refusing())
    opt = CurvatureOptimizer(method, model, backend=Full("float64"), name="mine", on_event=events.append)
    before = [p.detach().clone() for p in model.parameters()]
    opt.step(asked(model))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    assert [(e.name, e.step, e.detail) for e in events] == [("rejected", 0, {"arm": "mine", "damping": 0.25})]
    assert [entry[0] for entry in diary.said] == ["observe", "refresh", "apply", "learn", "damping"]


def test_the_reduction_ratio_of_a_quadratic_is_one() -> None:
    """A linear model under a squared error is its own quadratic model, along any step."""
    torch.manual_seed(0)
    model, events = nn.Linear(4, 3).double(), []
    method = Method(Identity(), LevenbergMarquardt(initial=3.0), Rate(0.2))
    opt = CurvatureOptimizer(method, model, backend=Full("float64"), on_event=events.append)
    for _ in range(3):
        opt.step(asked(model))
        assert opt.last is not None
        assert opt.last.reduction_ratio == pytest.approx(1.0, rel=1e-8)
    assert opt.last.damping == pytest.approx(3.0 / 1.5**2)  # trusted twice before this step


def test_the_reduction_ratio_is_actual_over_predicted_change_of_the_loss() -> None:
    model = network()
    opt = optimizer(Method(Identity(), LevenbergMarquardt(), Rate(2.0)), model)
    objective_, x, y = asked(model), *batch()
    before = F.mse_loss(model(x), y).item()
    seen = objective_.evaluate(Needs(products=1), opt.blocks, context(opt.arms[0]))
    u = seen.gradient.clone()
    predicted = -2.0 * float(u.dot(u)) + 0.5 * 4.0 * float(u.dot(seen.ggn @ u))
    opt.step(objective_)
    assert opt.last is not None
    assert opt.last.reduction_ratio == pytest.approx(
        (F.mse_loss(model(x), y).item() - before) / predicted, rel=1e-9
    )


def test_trial_losses_are_of_the_step_that_would_be_taken() -> None:
    """Armijo's accepted α, found again by hand."""
    model, (x, y) = network(), batch()
    g, before = gradients(model), [p.detach().clone() for p in model.parameters()]
    start = F.mse_loss(model(x), y).item()
    slope = -sum(float(each.square().sum()) for each in g)

    def loss(alpha: float) -> float:
        with torch.no_grad():
            there = [p - alpha * d for p, d in zip(before, g, strict=True)]
            trial = dict(zip(dict(model.named_parameters()), there, strict=True))
            return float(F.mse_loss(torch.func.functional_call(model, trial, (x,)), y))

    expected = next(
        64.0 * 0.5**k for k in range(20) if loss(64.0 * 0.5**k) <= start + 1e-4 * 64.0 * 0.5**k * slope
    )
    assert expected < 64.0
    opt = optimizer(Method(Identity(), Constant(), Armijo(lr=64.0)), model)
    opt.step(asked(model))
    assert opt.last is not None
    assert opt.last.lr == expected
    for p, old, each in zip(model.parameters(), before, g, strict=True):
        torch.testing.assert_close(p.detach(), old - expected * each)


def test_what_came_of_a_step_is_told_with_its_vectors_still_whole() -> None:
    model, diary = network(), Diary()
    g = torch.cat([each.flatten() for each in gradients(model)])
    told: list[StepOutcome] = []

    def listen(what: StepOutcome) -> None:
        told.append(what)
        torch.testing.assert_close(what.before.gradient.flat, g)
        torch.testing.assert_close(what.solve.x.flat, 2.0 * g)
        torch.testing.assert_close(what.step.update.flat, 2.0 * g)
        assert (what.step.alpha, what.step.accepted, what.solve.iterations) == (0.1, True, 3)

    opt = optimizer(Method(Noted(diary), Constant(), Rate(0.1)), model, listen)
    opt.step(asked(model))
    assert len(told) == 1


def test_no_buffer_of_a_step_outlives_it() -> None:
    model = network()
    seen: list[weakref.ref[Tensor]] = []

    def listen(what: StepOutcome) -> None:
        seen.extend(map(weakref.ref, (what.before.gradient.flat, what.solve.x.flat)))

    opt = optimizer(Method(Noted(Diary()), Constant(), Rate(0.1)), model, listen)
    opt.step(asked(model))
    assert len(seen) == 2
    assert all(buffer() is None for buffer in seen)


def test_a_loss_that_is_not_finite_at_the_end_of_a_trial_is_no_improvement() -> None:
    """The trial overshoots into infinity; the search goes back until it is finite and lower."""
    model = nn.Linear(4, 3).double()
    opt = optimizer(Method(Identity(), Constant(), Armijo(lr=1e300, shrink=1e-10, tries=40)), model)
    loss = opt.step(asked(model))
    assert opt.last is not None
    assert opt.last.accepted is True
    assert math.isfinite(opt.last.lr)
    assert float(asked(model).loss()) < float(loss)
