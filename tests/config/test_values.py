"""Plain values: strict types, every fault, and the way back to TOML."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from enum import Enum
from typing import Annotated, Any, Literal

import pytest
import tomli
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from curvlab.config.tree import Origin, dotted, node_of
from curvlab.config.values import as_plain, validated
from curvlab.errors import Fault
from curvlab.protocols.bounds import LARGEST_FLOAT, Limit


class Color(Enum):
    RED = "red"
    BLUE = "blue"


def read(value: Any, annotation: Any) -> tuple[Any, list[Fault]]:
    return validated(node_of(value, lambda path: Origin("test", dotted(("v", *path)))), annotation, "v")


@pytest.mark.parametrize(
    ("value", "annotation", "result"),
    [
        (1, float, 1.0),
        (LARGEST_FLOAT, float, LARGEST_FLOAT),
        (3, float | None, 3.0),
        (math.inf, Limit | None, math.inf),
        (2**63 - 1, int, 2**63 - 1),
        ([1, 2], tuple[int, ...], (1, 2)),
        ([], tuple[int, ...], ()),
        ([1, "a"], tuple[int, str], (1, "a")),
        (["a"], frozenset[str], frozenset({"a"})),
        ("red", Color, Color.RED),
        ({"a": 1}, Mapping[str, float], {"a": 1.0}),
        (datetime.date(2020, 1, 2), datetime.date, datetime.date(2020, 1, 2)),
    ],
)
def test_what_toml_can_say_is_read_as_the_type_that_is_asked_for(
    value: Any, annotation: Any, result: Any
) -> None:
    found, faults = read(value, annotation)
    assert not faults
    assert found == result
    assert type(found) is type(result)


@pytest.mark.parametrize(
    ("value", "annotation", "says"),
    [
        (True, int, "expected a whole number, got true"),
        (False, float, "expected a number, got false"),
        (1, bool, "expected true or false, got 1"),
        (1.0, int, "expected a whole number, got 1.0"),
        ("1", int, 'expected a whole number, got the string "1"'),
        (1, str, "expected a string, got 1"),
        (datetime.date(2020, 1, 2), str, "expected a string, got 2020-01-02"),
        ("green", Color, 'expected one of "red", "blue", got the string "green"'),
        ("x", Literal["a", 1], 'expected one of "a", 1, got the string "x"'),
        ({"a": 1}, float, "expected a number, got a table"),
        ([1], float, "expected a number, got an array of 1"),
        (-1, Annotated[int, Field(gt=0)], "greater than 0, got -1"),
        (math.nan, float, "nan is not allowed as a setting"),
        (-math.inf, float, "-inf is not a finite number"),
        (1e39, float | None, "1e+39 is larger than the largest float32"),
        (2**63, int, "the whole number is too large for 64 bits"),
        (-(10**4000), float, "the whole number is too large for 64 bits"),
    ],
)
def test_a_value_of_another_type_is_told(value: Any, annotation: Any, says: str) -> None:
    _, (fault,) = read(value, annotation)
    assert fault.path == "v"
    assert says in fault.message


def test_every_wrong_element_is_told_where_it_stands() -> None:
    _, faults = read([1, "x", 2, True], tuple[int, ...])
    assert [(f.path, f.message) for f in faults] == [
        ("v.1", 'expected a whole number, got the string "x"'),
        ("v.3", "expected a whole number, got true"),
    ]


@given(
    st.one_of(
        st.tuples(st.just(tuple[int, ...]), st.lists(st.integers(-(2**63), 2**63 - 1)).map(tuple)),
        st.tuples(st.just(float), st.floats(-LARGEST_FLOAT, LARGEST_FLOAT)),
        st.tuples(st.just(str), st.text(st.characters(codec="utf-8"))),
        st.tuples(st.just(dict[str, bool]), st.dictionaries(st.sampled_from("abc"), st.booleans())),
        st.tuples(st.just(Color), st.sampled_from(Color)),
        st.tuples(st.just(frozenset[int]), st.frozensets(st.integers(0, 9))),
    )
)
def test_a_value_comes_back_through_toml_as_it_was(case: tuple[Any, Any]) -> None:
    annotation, value = case
    written = tomli.loads(tomli_w.dumps({"v": as_plain(value)}))["v"]
    assert read(written, annotation) == (value, [])
