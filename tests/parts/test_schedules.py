"""Schedules: at their ends, and in between."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvlab.parts.schedules import Cosine, Linear
from curvlab.protocols.schedule import at_step


def test_a_line_goes_from_its_start_to_its_end_and_stays() -> None:
    line = Linear(3.0, 1.0, 10)
    assert [line(step) for step in (0, 5, 10, 11, 10**6)] == [3.0, 2.0, 1.0, 1.0, 1.0]


def test_a_cosine_goes_from_its_peak_to_its_end_and_stays() -> None:
    curve = Cosine(2.0, 10, end=0.5)
    assert curve(0) == 2.0
    assert curve(5) == pytest.approx(1.25)
    assert [curve(step) for step in (10, 11, 10**6)] == [0.5, 0.5, 0.5]
    assert [curve(k) for k in range(11)] == pytest.approx(
        [0.5 + 1.5 * 0.5 * (1 + math.cos(math.pi * k / 10)) for k in range(11)]
    )


def test_a_warm_up_rises_in_equal_steps_to_the_peak() -> None:
    curve = Cosine(1.0, 10, warmup=4)
    assert [curve(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert curve(10) == 0.0


@given(steps=st.integers(2, 50), warmup=st.integers(0, 20), peak=st.floats(0.1, 10), share=st.floats(0, 1))
def test_a_cosine_never_leaves_its_range_and_never_rises_after_the_warm_up(
    steps: int, warmup: int, peak: float, share: float
) -> None:
    curve = Cosine(peak, steps + warmup, warmup, end=share * peak)
    values = [curve(k) for k in range(steps + warmup + 3)]
    assert all(0.0 <= v <= peak * (1 + 1e-12) for v in values)
    falling = values[warmup:]
    assert all(b <= a + 1e-12 * peak for a, b in pairwise(falling))


def test_a_setting_may_be_a_number_or_a_schedule() -> None:
    assert at_step(2, 7) == 2.0
    assert at_step(Linear(0.0, 1.0, 2), 1) == 0.5
