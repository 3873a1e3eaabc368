"""The rank test counts every division of the pooled values; profiles count tasks."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from curvlab.races.profile import ratios, share_within
from curvlab.races.significance import holm, rank_sum_p


def counted(smaller: list[float], larger: list[float]) -> float:
    """The p-value by its definition: pairs in which the first sample wins, over every division."""
    pooled = [*smaller, *larger]

    def wins(chosen: tuple[int, ...]) -> float:
        rest = [k for k in range(len(pooled)) if k not in chosen]
        pairs = [(pooled[a], pooled[b]) for a in chosen for b in rest]
        return sum((a < b) + 0.5 * (a == b) for a, b in pairs)

    ours = wins(tuple(range(len(smaller))))
    divisions = list(itertools.combinations(range(len(pooled)), len(smaller)))
    return sum(wins(one) >= ours for one in divisions) / len(divisions)


def test_the_p_value_is_the_share_of_divisions_that_win_as_often_with_ties_and_infinities() -> None:
    draw = random.Random(0)
    for _ in range(30):
        sizes = draw.randint(1, 5), draw.randint(1, 5)
        a, b = ([draw.choice([1.0, 2.0, 3.0, 4.0, math.inf]) for _ in range(size)] for size in sizes)
        assert rank_sum_p(a, b) == pytest.approx(counted(a, b), abs=1e-15)


def test_without_ties_it_is_scipys_exact_test() -> None:
    stats = pytest.importorskip("scipy.stats")
    draw = random.Random(1)
    for sizes in ((5, 5), (3, 8), (9, 12)):
        a, b = (
            [draw.random() + shift for _ in range(size)] for size, shift in zip(sizes, (0, 0.2), strict=True)
        )
        exact = stats.mannwhitneyu(a, b, alternative="less", method="exact").pvalue
        assert rank_sum_p(a, b) == pytest.approx(exact, rel=1e-12)


def test_a_clean_lead_has_the_smallest_p_value_and_equal_runs_the_largest() -> None:
    assert rank_sum_p([1, 2, 3, 4, 5], [6, 7, 8, 9, math.inf]) == pytest.approx(1 / 252)
    assert rank_sum_p([1, 1], [1, 1, 1]) == 1.0
    assert rank_sum_p([math.inf] * 3, [math.inf] * 3) == 1.0


def test_holm_multiplies_by_the_comparisons_that_are_left_and_keeps_the_order() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx({"a": 0.06, "b": 0.03, "c": 0.06})
    assert holm({"a": 0.7, "b": 0.6}) == {"a": 1.0, "b": 1.0}
    assert holm({"a": 0.2}) == {"a": 0.2}


def test_a_profile_is_the_share_of_tasks_within_a_factor() -> None:
    found = ratios({"a": [10, 30, math.inf, math.inf], "b": [20, 10, 5, math.inf]})
    assert found == {"a": [1, 3, math.inf, math.inf], "b": [2, 1, 1, math.inf]}
    assert [share_within(factor, found["a"]) for factor in (1, 2.99, 3, 1e9)] == [0.25, 0.25, 0.5, 0.5]
    assert [share_within(factor, found["b"]) for factor in (1, 2)] == [0.5, 0.75]
    assert ratios({"a": [0.0], "b": [3.0]}) == {"a": [1.0], "b": [math.inf]}
