"""Whose lengths the steps of kfac and ekfac have, by the knobs that are given."""

from __future__ import annotations

import math
from typing import Any

import pytest

from curvlab.config.plan import build_method
from tests.limits.registered import registry


@pytest.mark.parametrize("name", ["kfac", "ekfac", "singd", "ingd", "ikfac"])
@pytest.mark.parametrize(
    ("knobs", "rule"),
    [
        ({}, "adafactor"),
        ({"norm_constraint": math.inf}, "none"),
        ({"norm_constraint": 1e-3}, "none"),
        ({"norm_constraint": 1e-3, "grafting": "rows"}, "rows"),
        ({"grafting": "none"}, "none"),
    ],
)
def test_a_bound_on_the_step_means_the_methods_own_lengths(
    name: str, knobs: dict[str, Any], rule: str
) -> None:
    """Unless another rule is asked for: a bound of another rule's lengths is of use to few."""
    assert build_method(registry(), name, knobs, {}).value("grafting") == rule
