"""Settings and their types, as a part's dataclass declares them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pytest

from curvlab.config.schema import element, has_parts, is_record, kind_of, members, settings_of, words
from curvlab.engine.method import Method
from curvlab.engine.plan import RunSettings
from curvlab.errors import PluginError
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.schedule import Schedule
from curvlab.protocols.step import StepRule, Transform
from curvlab.protocols.structure import Family, Gram, Group
from curvlab.registry.imports import protocol
from curvlab.registry.kinds import PROTOCOLS
from curvlab.structures.dense import Dense

if TYPE_CHECKING:
    from decimal import Decimal


@dataclass(frozen=True)
class Sample:
    constant: ClassVar[int] = 3
    given: int
    derived: int = field(init=False, default=0)
    many: tuple[int, ...] = field(default_factory=lambda: (1, 2))
    one: float = 0.5


@dataclass(frozen=True)
class Unreadable:
    value: Decimal


def test_settings_are_the_fields_that_init_takes_with_their_defaults() -> None:
    settings = settings_of(Sample)
    assert list(settings) == ["given", "many", "one"]
    assert settings["given"].required
    assert settings["many"].default == (1, 2)
    assert settings["one"].annotation is float


def test_a_type_that_only_a_type_checker_sees_is_the_plugins_fault() -> None:
    with pytest.raises(PluginError, match="import these types outside `if TYPE_CHECKING`"):
        settings_of(Unreadable)


@pytest.mark.parametrize("kind", PROTOCOLS)
def test_every_protocol_class_stands_for_its_kind(kind: str) -> None:
    assert kind_of(protocol(kind)) == kind


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (Preconditioner[Any], "preconditioner"),
        (Dense, "structure"),
        (Gram, "structure"),
        (Group, "structure"),
        (Method, "method"),
        (RunSettings, None),
        (float, None),
        (Mapping[str, Family], None),
    ],
)
def test_the_kind_of_an_annotation_is_that_of_its_class(annotation: Any, kind: str | None) -> None:
    assert kind_of(annotation) == kind


@pytest.mark.parametrize(
    ("annotation", "holds"),
    [
        (float | Schedule, True),
        (tuple[Transform[Any], ...], True),
        (Mapping[str, Preconditioner[Any]] | None, True),
        (RunSettings, True),
        (tuple[int, ...], False),
        (Literal["a"], False),
        (dict[str, float], False),
    ],
)
def test_parts_and_records_are_found_at_any_depth(annotation: Any, holds: bool) -> None:
    assert has_parts(annotation) is holds


def test_unions_sequences_and_mappings_are_taken_apart() -> None:
    assert members(float | Schedule | None) == (float, Schedule, type(None))
    assert element(tuple[int, ...]) is element(list[int]) is int
    assert element(tuple[int, str]) is None
    assert element(Mapping[str, float]) is float
    assert is_record(RunSettings)
    assert not is_record(Dense)


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (float | None, "a number"),
        (float | Schedule, "a number or a schedule"),
        (tuple[StepRule[Any], ...], "an array, each a step"),
        (Mapping[str, int], "a table of a whole number"),
        (Literal["a", 2], 'one of "a", 2'),
    ],
)
def test_types_are_told_in_words(annotation: Any, text: str) -> None:
    assert words(annotation) == text
