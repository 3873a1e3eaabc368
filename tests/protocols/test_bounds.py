"""Bounds of settings: checked, said in words, and stated by the JSON Schema, from one annotation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest
from pydantic import TypeAdapter

from curvlab.config.example import example_settings
from curvlab.config.plan import build_part
from curvlab.config.schema import members, settings_of
from curvlab.errors import ConfigError
from curvlab.protocols.bounds import (
    LARGEST_FLOAT,
    LARGEST_INT,
    Bounds,
    Count,
    Fraction,
    Inside,
    Limit,
    Natural,
    NotNegative,
    Positive,
    Ratio,
    Share,
    check_bounds,
)
from curvlab.registry.imports import part_class, protocol
from curvlab.registry.loader import installed


@dataclass(frozen=True)
class Settings:
    positive: Positive | None = None
    limit: Limit = 1.0
    decay: Fraction = 0.0
    widths: tuple[Count, ...] = ()
    pair: tuple[Natural, str] = (0, "")
    rates: dict[str, NotNegative] = field(default_factory=dict)
    grid: Ratio = 0.0
    portion: Annotated[int, Bounds(least=2)] | Share = 0.5

    def __post_init__(self) -> None:
        check_bounds(self)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("positive", 0, "positive = 0 must be positive"),
        ("positive", math.inf, "positive = inf must be positive"),
        ("limit", -math.inf, "must be positive (inf: no limit)"),
        ("decay", 1.0, "decay = 1.0 must be ≥ 0 and < 1"),
        ("decay", math.nan, "decay = nan must be ≥ 0 and < 1"),
        ("widths", (3, 0, -1), "widths.1 = 0 must be at least 1\nwidths.2: widths.2 = -1"),
        ("pair", (-1, "a"), "pair.0 = -1 must not be negative"),
        ("rates", {"a": 1.0, "b": -1.0}, "rates.b = -1.0 must not be negative"),
        ("grid", 0.5, "grid = 0.5 must be 0 or above 1"),
        ("portion", 1.5, "portion = 1.5 must be at least 2 or > 0 and ≤ 1"),
    ],
)
def test_a_number_out_of_bounds_is_named_with_its_place_and_the_bounds(
    name: str, value: Any, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(**{name: value})
    assert words in str(caught.value)


def test_every_fault_is_found_and_the_ends_belong_to_the_ranges() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(positive=-1.0, decay=2.0)
    assert [fault.path for fault in caught.value.faults] == ["positive", "decay"]
    Settings(positive=None, limit=math.inf, decay=0.0, widths=(1,), grid=0.0, portion=1.0)
    Settings(portion=2, grid=1.5)


def test_the_json_schema_states_the_bounds() -> None:
    def stated(annotation: Any) -> dict[str, Any]:
        found = TypeAdapter(annotation).json_schema()
        found.pop("type")
        return found

    assert stated(Inside) == {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
    assert stated(NotNegative) == {"minimum": 0, "maximum": LARGEST_FLOAT}
    assert stated(Count) == {"minimum": 1, "maximum": LARGEST_INT}
    assert stated(Limit) == {"exclusiveMinimum": 0}


def _bounded() -> list[tuple[Any, str, list[Bounds]]]:
    """Every bounded number of every part of ours, a schedule's rate among them."""
    found = []
    for entry in installed().parts():
        if entry.distribution.startswith("curvlab") and entry.name != "pde":  # it needs an equation
            for name, setting in settings_of(part_class(entry)).items():
                marks = [
                    m for option in members(setting.annotation) for m in getattr(option, "__metadata__", ())
                ]
                bounds = [mark for mark in marks if isinstance(mark, Bounds)]
                if bounds and name not in entry.preset:
                    found.append((entry, name, bounds))
    return found


def test_a_part_made_in_python_checks_what_its_types_say() -> None:
    registry, bounded = installed(), _bounded()
    assert len(bounded) > 100
    for entry, name, bounds in bounded:
        part = build_part(registry, protocol(entry.kind), entry.name, example_settings(entry, {}))
        settings = {key: getattr(part, key) for key in settings_of(type(part))}
        ends = [at for b in bounds for at in (b.least, b.above, b.most, b.below) if at is not None]
        for beyond in [*(at + sign for at in ends for sign in (-9.5, 9.5)), math.nan]:
            if not any(b.hold(beyond) for b in bounds):
                with pytest.raises(ConfigError, match=name):
                    type(part)(**{**settings, name: beyond})
