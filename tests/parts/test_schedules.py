"""Schedules: at their ends, and in between."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvlab.errors import ConfigError
from curvlab.parts.composed_schedules import Product, Sequence
from curvlab.parts.schedules import Cosine, Linear, Power, WarmUp, WarmUpStableDecay
from curvlab.protocols.cadence import interval_at, is_due
from curvlab.protocols.schedule import Schedule, at_step


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


def test_a_power_goes_from_its_start_to_its_end_and_with_power_one_it_is_a_line() -> None:
    power, line = Power(3.0, 1.0, 10, power=1.0), Linear(3.0, 1.0, 10)
    assert [power(k) for k in range(14)] == pytest.approx([line(k) for k in range(14)])
    steep = Power(2.0, 0.5, 8, power=3.0)
    assert [steep(k) for k in (0, 4, 8, 100)] == [2.0, 0.5 + 1.5 * 0.5**3, 0.5, 0.5]


def test_a_warm_up_is_a_factor_that_rises_to_one_and_stays() -> None:
    assert [WarmUp(4)(k) for k in (0, 1, 2, 3, 4, 100)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


@given(warmup=st.integers(0, 9), along=st.integers(0, 9), decay=st.integers(1, 9), power=st.floats(0.5, 3.0))
def test_warm_up_stable_decay_is_the_sequence_of_its_three_parts(
    warmup: int, along: int, decay: int, power: float
) -> None:
    whole = WarmUpStableDecay(2.0, warmup + along + decay, decay, warmup, 0.25, power)
    parts: list[float | Schedule] = [Power(2.0, 0.25, decay, power)]
    lengths: list[int] = []
    for part, length in ((2.0, along), (Product((2.0, WarmUp(max(warmup, 1)))), warmup)):
        if length:
            parts.insert(0, part)
            lengths.insert(0, length)
    composed = Sequence(tuple(parts), tuple(lengths))
    steps = range(whole.steps + 4)
    assert [whole(k) for k in steps] == pytest.approx([composed(k) for k in steps])
    assert whole(whole.steps) == 0.25
    assert whole(whole.steps - decay) == 2.0


def test_a_cosine_with_a_warm_up_is_a_warm_up_and_then_a_cosine() -> None:
    whole = Cosine(0.5, 20, warmup=6, end=0.1)
    composed = Sequence((Product((0.5, WarmUp(6))), Cosine(0.5, 14, end=0.1)), (6,))
    assert [whole(k) for k in range(25)] == pytest.approx([composed(k) for k in range(25)])


def test_factors_multiply_and_one_part_alone_is_itself() -> None:
    line = Linear(1.0, 3.0, 4)
    assert [Product((2.0, line, line))(k) for k in range(6)] == [2.0 * line(k) ** 2 for k in range(6)]
    assert [Sequence((line,))(k) for k in range(6)] == [line(k) for k in range(6)]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Product(()), "factors is empty"),
        (lambda: Sequence((1.0, 2.0)), "steps has 0 numbers; 2 parts need 1"),
        (lambda: Sequence((1.0,), (3,)), "steps has 1 numbers; 1 parts need 0"),
        (lambda: WarmUpStableDecay(1.0, 5, 3, warmup=3), "warmup \\+ decay = 6 is more than steps = 5"),
        (lambda: Sequence((1.0, -2.0), (3,)), "must not be negative"),
        (lambda: Product((1.0, -2.0)), "must not be negative"),
    ],
)
def test_what_does_not_fit_together_is_refused(make: Callable[[], Schedule], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


# intervals


@given(every=st.integers(1, 7))
def test_a_constant_interval_is_the_same_as_a_number_and_as_a_schedule(every: int) -> None:
    steady = Linear(float(every), float(every), 3)
    assert [is_due(k, steady) for k in range(40)] == [is_due(k, every) for k in range(40)]


def test_each_due_step_follows_the_last_by_the_interval_that_held_there() -> None:
    growing = Sequence((1, Linear(2.0, 4.4, 6)), (3,))
    due = [k for k in range(26) if is_due(k, growing)]
    assert due == [0, 1, 2, 3, 5, 8, 12, 16, 20, 24]
    assert [interval_at(growing, k) for k in due[:6]] == [1, 1, 1, 2, 3, 4]
    assert is_due(8, growing)  # whatever was asked before
    assert interval_at(Linear(0.0, 0.0, 1), 5) == 1
