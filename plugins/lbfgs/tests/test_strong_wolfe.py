"""The search along a line: where it ends, what it spends, and that nothing makes it end in a NaN."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvlab.errors import ConfigError
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.parts.schedules import Linear
from curvlab.protocols.evidence import Step
from curvlab.protocols.line import Line
from curvlab.protocols.needs import Needs
from curvlab.testing.lines import FunctionLine
from curvlab_lbfgs.strong_wolfe import NOISE, StrongWolfe

LAYOUT = BlockLayout({"x": (1,)})

Curve = Callable[[float], tuple[float, float]]  #: α ↦ loss and slope


@dataclass
class Road:
    """A loss along a line, as a function of α; counts and remembers what was asked."""

    curve: Curve
    dtype: torch.dtype = torch.float64
    asked: list[float] = field(default_factory=list)

    def number(self, x: float) -> BlockVector:
        return BlockVector(LAYOUT, torch.tensor([x], dtype=self.dtype))

    def differentiate(self, update: BlockVector, alpha: float) -> tuple[float, BlockVector]:
        self.asked.append(alpha)
        loss, slope = self.curve(alpha)
        return float(torch.tensor(loss, dtype=self.dtype)), self.number(slope)

    def line(self, rate: float = 1.0) -> Line:
        """θ − αu with u = −1, so that a gradient is a slope."""
        loss, slope = self.curve(0.0)
        return FunctionLine(
            update=self.number(-1.0),
            gradient=self.number(slope),
            rate=rate,
            loss=loss,
            gradients=self.differentiate,
        )

    def search(self, rule: StrongWolfe, rate: float = 1.0) -> Step:
        return rule.search(None, self.line(rate), 0)


def meets(curve: Curve, step: Step, rule: StrongWolfe) -> bool:
    (loss0, slope0), (loss, slope) = curve(0.0), curve(step.alpha)
    noise = NOISE * torch.finfo(torch.float64).eps * abs(loss0)
    enough = loss <= loss0 + max(rule.c1 * step.alpha * slope0, -math.inf) + noise
    return enough and abs(slope) <= rule.c2 * abs(slope0)


def valley(at: float, power: float, tilt: float) -> Curve:
    """A convex bowl with its minimum near ``at``, and a bump on the way."""

    def curve(a: float) -> tuple[float, float]:
        x = a / at - 1
        loss = abs(x) ** power + tilt * math.sin(6 * x)
        slope = (power * abs(x) ** (power - 1) * math.copysign(1, x) + 6 * tilt * math.cos(6 * x)) / at
        return loss, slope

    return curve


@settings(deadline=None, max_examples=300)
@given(
    at=st.floats(-5, 5).map(lambda e: 10.0**e),
    power=st.floats(1.5, 6.0),
    tilt=st.floats(-0.1, 0.1),
    c2=st.sampled_from([0.9, 0.1, 1e-3]),
)
def test_it_ends_where_both_conditions_hold(at: float, power: float, tilt: float, c2: float) -> None:
    curve, rule = valley(at, power, tilt), StrongWolfe(c2=c2, tries=60)
    if not curve(0.0)[1] < 0:
        return
    road = Road(curve)
    step = road.search(rule)
    assert step.accepted
    assert meets(curve, step, rule), (step.alpha, road.asked)
    assert len(road.asked) <= 30


@pytest.mark.parametrize("at", [1e-6, 0.3, 1.0, 7.0, 1e6])
def test_on_a_parabola_a_search_for_the_minimum_finds_it(at: float) -> None:
    road = Road(lambda a: ((a - at) ** 2, 2 * (a - at)))
    step = road.search(StrongWolfe(c2=1e-3))
    assert step.alpha == pytest.approx(at, rel=1e-3)
    assert len(road.asked) <= 3 + abs(math.log10(at))


def test_the_quasi_newton_rate_is_tried_first_and_taken_if_it_will_do() -> None:
    road = Road(lambda a: ((a - 1.2) ** 2, 2 * (a - 1.2)))
    assert road.search(StrongWolfe()).alpha == 1.0
    assert road.asked == [1.0]


def test_rates_of_rule_and_scheduler_multiply() -> None:
    road = Road(lambda a: ((a - 1.0) ** 2, 2 * (a - 1.0)))
    assert road.search(StrongWolfe(lr=0.5), rate=0.5).alpha == 0.25
    assert [StrongWolfe(lr=Linear(1.0, 0.5, 2)).rate(k) for k in (0, 2)] == [1.0, 0.5]


def test_the_gradient_it_returns_is_the_one_where_it_ends() -> None:
    curve = valley(0.01, 3.0, 0.05)
    step = Road(curve).search(StrongWolfe(c2=0.01))
    assert step.gradient is not None
    assert float(step.gradient.flat) == curve(step.alpha)[1]


@pytest.mark.parametrize("tries", [1, 2, 7])
def test_it_spends_at_most_the_trials_it_asked_for(tries: int) -> None:
    road, rule = Road(lambda a: (a * a - 1e-9 * a, 2 * a - 1e-9)), StrongWolfe(tries=tries)
    assert not road.search(rule).accepted
    assert len(road.asked) == tries
    assert rule.needs(0) == Needs(gradients=tries)


def test_when_trials_run_out_the_lowest_with_enough_decrease_is_taken() -> None:
    """Ever downhill at the same slope: nowhere is it flat enough."""
    road = Road(lambda a: (-a, -1.0))
    step = road.search(StrongWolfe(tries=5))
    assert step.accepted
    assert step.alpha == max(road.asked)


# where numbers fail


@pytest.mark.parametrize("beyond", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("of", ["loss", "slope", "both"])
@pytest.mark.parametrize("wall", [1e-6, 0.7, 30.0])
def test_what_is_not_finite_is_too_far(beyond: float, of: str, wall: float) -> None:
    """log(wall − α) and the like: a minimum at half the way to the wall, no number behind it."""

    def curve(a: float) -> tuple[float, float]:
        if a >= wall:
            return (0.0 if of == "slope" else beyond), (-1.0 if of == "loss" else beyond)
        x = a / wall
        return -math.log(1 - x) - 2 * x, (1 / (1 - x) - 2) / wall

    step, rule = Road(curve).search(StrongWolfe()), StrongWolfe()
    assert step.accepted
    assert step.alpha < wall
    assert meets(curve, step, rule)


def nowhere(a: float) -> tuple[float, float]:
    return (1.0, -1.0) if a == 0 else (float("nan"), float("nan"))


REJECTED: dict[str, Curve] = {
    "nothing is finite": nowhere,
    "it goes up": lambda a: (a, 1.0),
    "it is flat": lambda a: (0.0, 0.0),
    "the slope is no number": lambda a: (-a, float("nan")),
    "the loss is no number": lambda a: (float("nan"), -1.0),
    "the gradient lies": lambda a: (1.0 + a, -1.0),
    "a jump": lambda a: (0.0 if a == 0 else 1.0, -1.0),
}


@pytest.mark.parametrize("why", REJECTED)
def test_a_search_that_fails_rejects_the_step(why: str) -> None:
    step = Road(REJECTED[why]).search(StrongWolfe())
    assert (step.accepted, step.alpha, step.gradient) == (False, 0.0, None)


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_leads_nowhere_rejects_the_step(rate: float) -> None:
    assert not Road(lambda a: (-a, -1.0)).search(StrongWolfe(), rate=rate).accepted


@pytest.mark.parametrize("at", [0.05, 0.4, 1.0, 3.0, 40.0])
def test_below_the_rounding_of_the_loss_the_slopes_lead_to_the_minimum(at: float) -> None:
    """A parabola that float32 cannot see on a loss of 1, whose losses are off in the last place."""

    def curve(a: float) -> tuple[float, float]:
        jitter = 1.2e-7 * math.cos(1000 * a)
        return 1.0 + 1e-9 * (a / at - 1) ** 2 + jitter, 2e-9 * (a / at - 1) / at

    step = Road(curve, torch.float32).search(StrongWolfe(c2=0.1))
    assert step.accepted
    assert step.alpha == pytest.approx(at, rel=0.2)


# settings


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"lr": 0.0}, "lr = 0.0"),
        ({"lr": float("inf")}, "lr = inf"),
        ({"c1": 0.0}, "c1 = 0.0"),
        ({"c1": 0.6}, "c1 = 0.6"),
        ({"c2": 1.0}, "c2 = 1.0"),
        ({"c1": 0.3, "c2": 0.2}, "c2 = 0.2"),
        ({"tries": 0}, "tries = 0"),
    ],
)
def test_bad_settings_are_refused_by_name_and_value(setting: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        StrongWolfe(**setting)  # type: ignore[arg-type]
