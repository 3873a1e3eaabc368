"""The geometric rule: the sizes it gives."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvlab_hessianfree.geometric import Geometric


def sizes(part: Geometric, size: int, times: int) -> list[tuple[int, int]]:
    state = part.init(size, 8, 0)
    return [(len(d.gradient), len(d.curvature)) for d in (part.draw(state) for _ in range(times))]


@settings(deadline=None, max_examples=100)
@given(
    hundredths=st.integers(100, 250),
    curvature_hundredths=st.integers(100, 250),
    first=st.integers(2, 200),
    interval=st.integers(1, 3),
)
def test_each_sample_is_the_last_times_its_factor_rounded_up(
    hundredths: int, curvature_hundredths: int, first: int, interval: int
) -> None:
    """In exact arithmetic: 1.1 times 10 is 11, though the nearest doubles give a little more."""
    part = Geometric(
        gradient=first,
        gradient_growth=hundredths / 100,
        curvature=2,
        curvature_growth=curvature_hundredths / 100,
        interval=interval,
    )
    g, c, expected = first, 2, []
    for k in range(30):
        if k and k % interval == 0:
            g = min(2000, math.ceil(Fraction(hundredths, 100) * g))
            c = min(g, math.ceil(Fraction(curvature_hundredths, 100) * c))
        expected.append((g, c))
    assert sizes(part, 2000, 30) == expected


def test_doubling_is_a_power_of_two_until_the_cap() -> None:
    part = Geometric(gradient=2, gradient_growth=2.0, gradient_cap=0.5, curvature=2, curvature_growth=1.0)
    assert sizes(part, 100, 8) == [(2, 2), (4, 2), (8, 2), (16, 2), (32, 2), (50, 2), (50, 2), (50, 2)]


def test_the_default_samples_become_all_of_the_data() -> None:
    assert sizes(Geometric(), 1000, 40)[-1] == (1000, 1000)


@pytest.mark.parametrize("factor", [1.0, 1])
def test_a_factor_of_one_keeps_a_size(factor: float) -> None:
    part = Geometric(gradient=0.5, gradient_growth=factor, curvature=0.25, curvature_growth=factor)
    assert sizes(part, 40, 5) == [(20, 10)] * 5
