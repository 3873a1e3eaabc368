"""Damping policies: what λ is, and what changes it."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvlab.parts.damping import Constant, LambdaState, LevenbergMarquardt
from curvlab.parts.schedules import Linear
from curvlab.protocols.needs import GRADIENT_ONLY, Needs
from tests.parts.vectors import outcome, vector


def learned(part: LevenbergMarquardt, damping: float, ratio: float | None, *, accepted: bool = True) -> float:
    """λ after a learning step that found ``ratio``."""
    state = LambdaState(damping, math.nan)
    part.learn(state, outcome(vector(), ratio=ratio, accepted=accepted), part.interval - 1)
    return state.damping


def test_a_constant_is_constant_and_asks_for_nothing() -> None:
    part = Constant(0.3)
    assert [part.at(part.init(), step) for step in (0, 7)] == [0.3, 0.3]
    assert part.needs(0) == GRADIENT_ONLY
    part.learn(None, outcome(vector(), ratio=-1.0), 0)


def test_a_constant_may_follow_a_schedule() -> None:
    assert [Constant(Linear(1.0, 0.0, 4)).at(None, step) for step in (0, 1, 4, 9)] == [1.0, 0.75, 0.0, 0.0]


@given(ratio=st.floats(allow_nan=True, allow_infinity=True))
def test_lambda_rises_below_low_falls_above_high_and_stays_between(ratio: float) -> None:
    found = learned(LevenbergMarquardt(factor=2.0), 1.0, ratio)
    assert found == (0.5 if ratio > 0.75 else 1.0 if ratio >= 0.25 else 2.0)


@pytest.mark.parametrize("ratio", [None, 1.0])
def test_a_rejected_step_raises_lambda_whatever_its_ratio(ratio: float | None) -> None:
    assert learned(LevenbergMarquardt(factor=2.0), 1.0, ratio, accepted=False) == 2.0


def test_lambda_stays_within_its_bounds() -> None:
    part = LevenbergMarquardt(factor=10.0, minimum=0.5, maximum=2.0)
    assert learned(part, 1.0, 2.0) == 0.5
    assert learned(part, 1.0, -1.0) == 2.0


def test_it_learns_and_asks_on_its_interval_alone() -> None:
    part = LevenbergMarquardt(interval=3, factor=2.0)
    asking = [part.needs(step) for step in range(6)]
    assert asking == [GRADIENT_ONLY, GRADIENT_ONLY, Needs(products=1, losses=1)] * 2
    state = part.init()
    for step in range(6):
        part.learn(state, outcome(vector(), ratio=None if asking[step] == GRADIENT_ONLY else 0.9), step)
    assert part.at(state, 6) == 0.25
    assert state.ratio == 0.9


def test_a_rejected_step_off_the_interval_changes_nothing() -> None:
    part = LevenbergMarquardt(interval=3)
    state = part.init()
    part.learn(state, outcome(vector(), accepted=False), 0)
    assert part.at(state, 1) == part.initial
