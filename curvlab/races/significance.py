"""Whether one sample of costs is smaller than another beyond chance: an exact one-sided rank test."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import comb
from typing import TypeVar

K = TypeVar("K")


def rank_sum_p(smaller: Sequence[float], larger: Sequence[float]) -> float:
    """The one-sided p-value of the Wilcoxon–Mann–Whitney test that ``smaller`` is smaller.

    This is the share, among all ways of dividing the pooled values into samples of these sizes, of those
    whose sum of ranks is at most that of ``smaller``.  Equal values share the mean of their ranks, so the
    value is exact with ties too; infinite values, of runs that did not reach a target, are equal.  The
    smallest possible p-value of m and n values is 1 / binomial(m + n, m).

    The number of divisions by sum is found by dynamic programming, in O(m (m + n)³) operations.  Sources:
    F. Wilcoxon, Biometrics Bulletin 1 (1945); H. B. Mann and D. R. Whitney, Ann. Math. Stat. 18 (1947).
    """
    pooled = [*smaller, *larger]
    ranks = _doubled_ranks(pooled)
    size, observed = len(smaller), sum(ranks[: len(smaller)])
    # counts[k][s]: ways to choose k of the ranks so far with the sum s
    counts: list[Counter[int]] = [Counter({0: 1}), *(Counter() for _ in range(size))]
    for rank in ranks:
        for k in range(size, 0, -1):
            for total, ways in counts[k - 1].items():
                counts[k][total + rank] += ways
    below = sum(ways for total, ways in counts[size].items() if total <= observed)
    return below / comb(len(pooled), size)


def holm(p_values: Mapping[K, float]) -> dict[K, float]:
    """p-values adjusted for the number of comparisons, so that the chance of any false one is bounded.

    Source: S. Holm, Scand. J. Statist. 6 (1979).
    """
    found: dict[K, float] = {}
    largest = 0.0
    for k, (key, p) in enumerate(sorted(p_values.items(), key=lambda pair: pair[1])):
        largest = max(largest, min(1.0, (len(p_values) - k) * p))
        found[key] = largest
    return {key: found[key] for key in p_values}


def _doubled_ranks(values: Sequence[float]) -> list[int]:
    """Twice the mean rank of each value, a whole number."""
    below = {value: sum(other < value for other in values) for value in set(values)}
    equal = Counter(values)
    return [2 * below[value] + equal[value] + 1 for value in values]
