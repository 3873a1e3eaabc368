"""Gates: deterministic numbers at 1 %, counts at one more, times at twice and only where intervals part."""

from __future__ import annotations

import pytest

from curvlab.bench.comparison import Verdict, change, compare, regressions
from curvlab.bench.records import Key, Measurement, Result

FLOPS, STEPS, TIME = Key("a.track_flops"), Key("a.track_iterations"), Key("a.time_step")


def verdict(key: Key, base: Measurement | None, head: Measurement | None) -> Verdict:
    return change(key, base, head).verdict


def number(value: float | None, low: float | None = None, high: float | None = None) -> Measurement:
    return Measurement(value, low, high)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (100.0, "equal"),
        (101.0, "equal"),
        (101.1, "worse"),
        (99.1, "equal"),
        (98.9, "better"),
        (0.0, "better"),
    ],
)
def test_a_deterministic_number_may_grow_by_one_per_cent(after: float, expected: str) -> None:
    assert verdict(FLOPS, number(100.0), number(after)) is Verdict(expected)


def test_of_iterations_one_more_is_too_many_however_many_there_are() -> None:
    assert verdict(STEPS, number(1000.0), number(1001.0)) is Verdict.WORSE
    assert verdict(STEPS, number(1000.0), number(1000.0)) is Verdict.EQUAL
    assert verdict(STEPS, number(1001.0), number(1000.0)) is Verdict.BETTER


def test_something_out_of_nothing_is_worse() -> None:
    found = change(FLOPS, number(0.0), number(1.0))
    assert found.verdict is Verdict.WORSE
    assert found.ratio == float("inf")
    assert verdict(FLOPS, number(0.0), number(0.0)) is Verdict.EQUAL


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ((1.9, 1.8, 2.0), "slower"),  # sure, and within the gate
        ((2.1, 2.0, 2.2), "worse"),
        ((2.1, 1.05, 3.0), "equal"),  # intervals overlap
        ((0.5, 0.4, 0.6), "better"),
        ((5.0, None, None), "equal"),  # one sample
    ],
)
def test_a_time_has_changed_where_intervals_part(head: tuple[float, ...], expected: str) -> None:
    assert verdict(TIME, number(1.0, 0.9, 1.1), number(*head)) is Verdict(expected)


def test_the_ratio_of_two_times_lies_between_the_ends_of_their_intervals() -> None:
    found = change(TIME, number(1.0, 0.9, 1.1), number(3.0, 2.2, 3.6))
    assert found.interval == (pytest.approx(2.0), pytest.approx(4.0))
    assert found.confidence == "99 %"
    assert change(FLOPS, number(1.0), number(2.0)).confidence == "exact"


def test_what_fails_stops_a_change_and_what_goes_does_not() -> None:
    assert verdict(FLOPS, number(1.0), number(None)) is Verdict.FAILED
    assert verdict(FLOPS, None, number(None)) is Verdict.FAILED
    assert verdict(FLOPS, number(None), number(1.0)) is Verdict.FIXED
    assert verdict(FLOPS, number(None), number(None)) is Verdict.EQUAL
    assert verdict(FLOPS, number(1.0), None) is Verdict.GONE
    assert verdict(FLOPS, None, number(1.0)) is Verdict.NEW
    assert {v for v in Verdict if v.regression} == {Verdict.WORSE, Verdict.FAILED}


def test_numbers_of_different_versions_do_not_compare() -> None:
    assert (
        verdict(FLOPS, Measurement(1.0, version="1"), Measurement(9.0, version="2")) is Verdict.INCOMPARABLE
    )


def test_the_gravest_come_first() -> None:
    base = Result("a", 0, "", {FLOPS: number(1.0), STEPS: number(1.0), TIME: number(1.0)})
    head = Result("b", 1, "", {FLOPS: number(2.0), STEPS: number(3.0), Key("a.track_bytes"): number(1.0)})
    found = compare(base, head)
    assert [c.key for c in found] == [STEPS, FLOPS, TIME, Key("a.track_bytes")]
    assert [c.key for c in regressions(found)] == [STEPS, FLOPS]
