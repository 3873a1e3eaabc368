"""Performance profiles: how often a method is within a factor of the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

#: factors at which the table shows a profile
FACTORS = (1.0, 1.5, 2.0, 4.0)


def ratios(costs: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """For each method and task, its cost over the least cost of any method on that task.

    ``costs`` has a value per task, infinite where the target was not reached; that ratio is infinite, also
    where no method reached it.
    """
    best = [min(column) for column in zip(*costs.values(), strict=True)]
    return {
        name: [_ratio(cost, least) for cost, least in zip(row, best, strict=True)]
        for name, row in costs.items()
    }


def share_within(factor: float, own: Sequence[float]) -> float:
    """The profile ρ(τ): the share of tasks on which a method's ratio is at most ``factor``.

    Source: E. D. Dolan and J. J. Moré, Math. Program. 91 (2002).
    """
    return sum(ratio <= factor for ratio in own) / len(own)


def _ratio(cost: float, least: float) -> float:
    if math.isinf(cost):
        return math.inf
    return 1.0 if cost == least else cost / least if least > 0 else math.inf
