"""The bias-corrected moving average: weights of all values add up to one, and decay geometrically."""

from __future__ import annotations

from itertools import pairwise

import pytest

from curvlab.linalg.averages import newest_weight


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9, 0.999])
def test_the_weights_add_up_to_one_and_shrink_by_the_decay_with_age(decay: float) -> None:
    count = 7
    weights = [0.0] * count
    for k in range(count):
        newest = newest_weight(decay, k + 1)
        weights = [(1 - newest) * w for w in weights]
        weights[k] = newest
    assert sum(weights) == pytest.approx(1.0, rel=1e-12)
    for older, newer in pairwise(weights):
        assert older == pytest.approx(decay * newer, rel=1e-9)


def test_the_first_value_is_the_mean() -> None:
    assert newest_weight(0.95, 1) == 1.0


def test_it_is_adams_moving_average_divided_by_its_bias_correction() -> None:
    decay, values = 0.9, [3.0, -1.0, 4.0, 1.0, -5.0]
    mean = adam = 0.0
    for t, value in enumerate(values, start=1):
        w = newest_weight(decay, t)
        mean = (1 - w) * mean + w * value
        adam = decay * adam + (1 - decay) * value
        assert mean == pytest.approx(adam / (1 - decay**t), rel=1e-12)
