"""Near misses."""

from __future__ import annotations

import pytest

from curvlab.registry.suggest import advice, nearest

NAMES = ["damping", "float32", "float64", "weight-decay", "lr"]


@pytest.mark.parametrize(
    ("word", "name"),
    [
        ("dampng", "damping"),
        ("Damping", "damping"),
        ("weight_decay", "weight-decay"),
        ("flaot64", "float64"),
        ("zzz", None),
        ("", None),
    ],
)
def test_the_nearest_name_is_found_if_one_is_near(word: str, name: str | None) -> None:
    assert nearest(word, NAMES) == name


def test_advice_lists_what_there_is_even_if_nothing_is_near() -> None:
    assert advice("lrr", ["lr"], "Knobs") == 'Did you mean "lr"?  Knobs: lr.'
    assert advice("zzz", ["lr", "a"], "Knobs") == "Knobs: a, lr."
    assert advice("zzz", [], "Knobs") == "Knobs: none."
