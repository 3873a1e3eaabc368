"""The suite of step rules."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.cg import conjugate_gradients
from curvlab.linalg.compose import Shifted
from curvlab.linalg.progress import Trace
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Needs
from curvlab.protocols.step import StepRule
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.conformance.exercised import Found, Stateful
from curvlab.testing.conformance.krylov import Counted, system
from curvlab.testing.lines import FunctionLine
from curvlab.testing.paths import DensePath
from curvlab.testing.problems import normal

LAYOUT = BlockLayout({"a": (2, 3), "b": (2,)})
DAMPING = 0.1


@dataclass
class Valley:
    """``f(θ) = ½ θᵀAθ + ¼ Σ θ⁴``, what is asked of it counted; ``poison`` makes every trial NaN."""

    theta: Float[Tensor, " D"]
    A: Counted
    poison: bool = False
    rises: bool = False
    asked: dict[str, int] = field(default_factory=lambda: {"losses": 0, "gradients": 0})

    def value(self, theta: Tensor) -> float:
        """f, or what the case makes of it away from θ."""
        if self.poison and not torch.equal(theta, self.theta):
            return math.nan
        if self.rises:
            return float((theta - self.theta).square().sum().sqrt()) + 1.0
        return float(0.5 * theta @ (self.A.matrix @ theta) + 0.25 * theta.pow(4).sum())

    def gradient(self, theta: Tensor) -> Tensor:
        """∇f."""
        found = self.A.matrix @ theta + theta.pow(3)
        return found * math.nan if self.poison and not torch.equal(theta, self.theta) else found

    def loss_of(self, update: BlockVector, alpha: float) -> float:
        """f at θ − α·u."""
        self.asked["losses"] += 1
        return self.value(self.theta - alpha * update.flat)

    def differentiate(self, update: BlockVector, alpha: float) -> tuple[float, BlockVector]:
        """The same with its gradient."""
        self.asked["gradients"] += 1
        there = self.theta - alpha * update.flat
        slope = (there - self.theta) if self.rises else self.gradient(there)
        return self.value(there), BlockVector(LAYOUT, slope)


@dataclass
class Case:
    """A valley, and a line in it."""

    valley: Valley
    line: Line


class StepRuleConformance(Stateful):
    """How far a rule goes along lines that fall, that rise, and that lead nowhere.

    A rule that follows a path is given that of the quadratic part.
    """

    kind = "step"
    part: StepRule[Any]

    @property
    def name(self) -> str:
        """The class, for messages."""
        return type(self.part).__name__

    def case(
        self,
        seed: int = 0,
        *,
        uphill: bool = False,
        length: float = 1.0,
        poison: bool = False,
        rises: bool = False,
    ) -> Case:
        """A line along the damped Newton direction of the quadratic part."""
        A, _ = system(LAYOUT, seed=seed)
        where = Valley(normal(LAYOUT.size, seed=seed + 3), A, poison, rises)
        gradient = BlockVector(LAYOUT, where.gradient(where.theta))
        found = conjugate_gradients(
            Shifted(A, DAMPING),
            gradient,
            max_iterations=20,
            tolerance=1e-10,
            trace=Trace(1.3, 8, 20),
        )
        scale = -length if uphill else length
        iterates = tuple(
            replace(i, x=i.x * scale, curvature=(i.curvature - DAMPING * float(i.x.dot(i.x))) * scale * scale)
            for i in found.iterates
        )
        A.count = 0
        path = DensePath(A.matrix, gradient, scale) if self.part.follows else None
        return Case(where, _line(where, gradient, iterates, path))

    def begin(self) -> Any:
        return self.part.init(BlockVector(LAYOUT, torch.zeros(LAYOUT.size, dtype=torch.float64)))

    def advance(self, run: Any, step: int) -> Found:
        case = self.case(step)
        found = self.part.search(run, case.line, step)
        return {"update": found.update.clone(), "alpha": found.alpha, "accepted": found.accepted}

    def search(self, case: Case) -> Step:
        """With a fresh state."""
        return self.part.search(self.begin(), case.line, 0)

    @check()
    def check_obligations(self) -> None:
        """``rate`` is a finite number, ``needs`` are Needs, and a Step has a finite α along the blocks."""
        needs, rate = self.part.needs(0), self.part.rate(0)
        assert isinstance(needs, Needs), f"{self.name}.needs must return Needs, not {needs!r}"
        assert isinstance(rate, float), f"{self.name}.rate must return a float, not {rate!r}"
        assert math.isfinite(rate), f"{self.name}.rate(0) is {rate}"
        step = self.search(self.case())
        assert isinstance(step, Step), f"{self.name}.search must return a Step, not a {type(step).__name__}"
        assert step.update.layout == LAYOUT, (
            f"{self.name}.search: the blocks of the step differ from those of the line"
        )

    @check()
    def check_descends(self) -> None:
        """A rule that asks for losses or gradients accepts no step that raises the loss."""
        for seed in range(5):
            for length in (0.01, 1.0, 100.0):
                case = self.case(seed, length=length)
                step = self.search(case)
                if not step.accepted or not self._searches():
                    continue
                start = case.valley.value(case.valley.theta)
                end = case.valley.value(case.valley.theta - step.alpha * step.update.flat)
                assert end <= start * (1 + 1e-12), f"{self.name} accepts a step from {start:.6g} to {end:.6g}"

    @check()
    def check_accepts(self) -> None:
        """Along a direction that falls, some step is accepted, and it moves."""
        for seed in range(5):
            step = self.search(self.case(seed))
            assert step.accepted, f"{self.name} rejects a line along which the loss falls"
            length = abs(step.alpha) * float(step.update.norm())
            assert length > 0 or self.part.rate(0) == 0, f"{self.name} accepts a step of length zero"

    @check()
    def check_hopeless(self) -> None:
        """A rule that asks for losses or gradients rejects a line where every trial is NaN, or higher."""
        if not self._searches():
            return
        for words, case in (("NaN", self.case(poison=True)), ("higher", self.case(rises=True))):
            step = self.search(case)
            assert not step.accepted, f"{self.name} accepts a step though every trial loss is {words}"

    @check()
    def check_finite(self) -> None:
        """α is finite, and an accepted step too, along enormous, tiny, zero and poisoned lines."""
        cases = {
            "an enormous update": self.case(length=1e150),
            "a tiny update": self.case(length=1e-150),
            "an update of zero": self.case(length=0.0),
            "an update uphill": self.case(uphill=True),
            "NaN trials": self.case(poison=True),
            "NaN curvature": self._bent(math.nan),
            "negative curvature": self._bent(-1.0),
        }
        for words, case in cases.items():
            step = self.search(case)
            assert math.isfinite(step.alpha), f"{self.name}: α = {step.alpha} along {words}"
            moves = step.accepted and not (step.update * step.alpha).is_finite()
            assert not moves, f"{self.name} accepts a step that is not finite along {words}"

    def _bent(self, factor: float) -> Case:
        case = self.case()
        case.valley.A.matrix = case.valley.A.matrix * factor
        bent = tuple(replace(i, curvature=i.curvature * factor) for i in case.line.iterates)
        path = case.line.path
        if isinstance(path, DensePath):
            path = replace(path, bent=factor)
        return Case(case.valley, replace(case.line, iterates=bent, path=path))

    @check()
    def check_budget(self) -> None:
        """No more losses, gradients and products than ``needs`` says, in the first step and in later ones."""
        for first in ({}, {"length": 1e3}, {"poison": True}, {"rises": True}):
            state = self.begin()
            for step, case in enumerate((self.case(**first), self.case(1), self.case(2, rises=True))):
                self.part.search(state, case.line, step)
                spent = {**case.valley.asked, "products": case.valley.A.count}
                for what, n in spent.items():
                    told = getattr(self.part.needs(step), what)
                    assert n <= told, f"{self.name} makes {n} {what}, and needs({step}) declares {told}"

    @check()
    def check_prescribed(self) -> None:
        """If it says so, every step is taken, by the rate of its number, whatever the loss."""
        if not self.part.prescribed:
            raise Skipped("it searches for its rate")
        state = self.begin()
        for k, case in enumerate((self.case(), self.case(uphill=True), self.case(rises=True))):
            step = self.part.search(state, replace(case.line, rate=0.5), k)
            same = step.accepted and torch.equal(step.update.flat, case.line.update.flat)
            assert same and step.alpha == 0.5 * self.part.rate(k), (  # noqa: PT018
                f"{self.name} is prescribed, and step {k} is not rate({k}) times the update"
            )

    @check()
    def check_rate(self) -> None:
        """``line.rate`` multiplies the rule's own: a rule that tries nothing goes as much farther."""
        needs = self.part.needs(0)
        if self._searches() or needs.products:
            return
        case = self.case()
        alphas = [self.search(Case(case.valley, replace(case.line, rate=r))).alpha for r in (1.0, 0.5, 2.0)]
        expected = [alphas[0], alphas[0] * 0.5, alphas[0] * 2.0]
        assert alphas == expected, f"{self.name}: α = {alphas} at line.rate = 1, ½, 2"

    @check()
    def check_arguments(self) -> None:
        """The update, the gradient and the iterates of the line stay as they were."""
        case, state = self.case(), self.begin()
        line = case.line
        kept = [line.update.clone(), line.gradient.clone(), *(i.x.clone() for i in line.iterates)]
        for k in range(2):
            self.part.search(state, line, k)
        now = [line.update, line.gradient, *(i.x for i in line.iterates)]
        same = all(torch.equal(a.flat, b.flat) for a, b in zip(kept, now, strict=True))
        assert same, f"{self.name}.search changes its arguments"

    @check()
    def check_remembers(self) -> None:
        """What it wants to remember of a step it copies: a step's vectors are used again by the next."""
        state, twin = self.begin(), self.begin()
        for k in range(3):
            case, other = self.case(k), self.case(k)
            first = self.part.search(state, case.line, k)
            second = self.part.search(twin, other.line, k)
            same = torch.equal(first.update.flat, second.update.flat) and first.alpha == second.alpha
            assert same, (
                f"{self.name}: step {k} changes if the memory of step {k - 1} is reused; copy vectors to keep"
            )
            for v in (
                other.line.update,
                other.line.gradient,
                second.update,
                *(i.x for i in other.line.iterates),
            ):
                v.flat.fill_(7.0)

    def _searches(self) -> bool:
        needs = self.part.needs(0)
        return bool(needs.losses or needs.gradients)


def _line(where: Valley, gradient: BlockVector, iterates: tuple[Any, ...], path: DensePath | None) -> Line:
    return FunctionLine(
        update=iterates[-1].x,
        gradient=gradient,
        damping=DAMPING,
        ggn=where.A,
        loss=where.value(where.theta),
        iterates=iterates,
        path=path,
        losses=where.loss_of,
        gradients=where.differentiate,
    )
