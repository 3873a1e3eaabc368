"""Laying trees over one another, and setting values at paths."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvlab.config.merge import at, merge, put
from curvlab.config.tree import Node, Origin, dotted, node_of, plain
from curvlab.errors import Fault

TREES = st.recursive(
    st.integers(), lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3), max_leaves=8
)
TABLES = st.dictionaries(st.sampled_from("abc"), TREES, max_size=3)


def tree(data: Any, layer: str = "test") -> Node:
    return node_of(data, lambda path: Origin(layer, dotted(path)))


def merged(base: Any, over: Any) -> tuple[Any, list[Fault]]:
    faults: list[Fault] = []
    return plain(merge(tree(base), tree(over), faults)), faults


@given(TABLES)
def test_merging_a_tree_with_itself_or_with_nothing_changes_nothing(data: Any) -> None:
    assert merged(data, data) == merged(data, {}) == merged({}, data) == (data, [])


@given(TABLES, TABLES, TABLES)
def test_merging_is_associative_where_tables_meet_tables(one: Any, two: Any, three: Any) -> None:
    left, _ = merged(merged(one, two)[0], three)
    right, _ = merged(one, merged(two, three)[0])
    # a plain value that buries a table forgets it, in whichever order the layers are merged
    if _no_burials(one, two) and _no_burials(two, three) and _no_burials(one, three):
        assert left == right


def _no_burials(one: Any, two: Any) -> bool:
    if isinstance(one, dict) and isinstance(two, dict):
        return all(_no_burials(one[k], two[k]) for k in one.keys() & two.keys())
    return isinstance(one, dict) == isinstance(two, dict)


@given(TABLES, st.lists(st.sampled_from("abc"), min_size=1, max_size=4), st.integers())
def test_what_is_put_at_a_path_is_found_there(data: Any, path: list[str], value: int) -> None:
    changed = put(tree(data), path, tree(value), [])
    assert changed is not None
    found = at(changed, path)
    blocked = any(
        not isinstance(plain(n), dict)
        for i in range(len(path))
        if (n := at(tree(data), path[:i])) is not None
    )
    assert blocked or (found is not None and plain(found) == value)


def test_every_value_keeps_the_origin_of_its_layer() -> None:
    result = merge(tree({"a": 1, "t": {"x": 1, "y": 1}}, "one"), tree({"t": {"y": 2}}, "two"), [])
    layers = {path: at(result, path).origin.layer for path in [("a",), ("t", "x"), ("t", "y")]}  # type: ignore[union-attr]
    assert layers == {("a",): "one", ("t", "x"): "one", ("t", "y"): "two"}


@pytest.mark.parametrize(
    ("base", "over", "result"),
    [
        ({"use": "a", "x": 1}, {"use": "b"}, {"use": "b"}),
        ({"use": "a", "x": 1}, {"use": "a", "y": 2}, {"use": "a", "x": 1, "y": 2}),
        ({"use": "a", "x": 1}, {"y": 2}, {"use": "a", "x": 1, "y": 2}),
        ({"use": "a", "x": 1}, "a", {"use": "a", "x": 1}),
        ({"use": "a", "x": 1}, "b", {"use": "b"}),
        ("a", {"x": 1}, {"use": "a", "x": 1}),
        ({"use": "a", "x": 1}, "none", "none"),
        ("none", {"x": 1}, {"x": 1}),
        ({"use": "a"}, 0.5, 0.5),
        (0.5, {"use": "a"}, {"use": "a"}),
        ([1, 2], [3], [3]),
        ([{"use": "a"}, "b"], {"b": {"x": 1}}, [{"use": "a"}, {"use": "b", "x": 1}]),
        ([{"use": "a"}], {"0": "c"}, [{"use": "c"}]),
    ],
)
def test_parts_are_merged_by_what_they_use(base: Any, over: Any, result: Any) -> None:
    assert merged({"v": base}, {"v": over}) == ({"v": result}, [])


@pytest.mark.parametrize(
    ("base", "over", "result"),
    [
        ({"use": "a", "x": {"use": "b"}}, {"use": "a", "y": 2}, {"use": "a", "y": 2}),
        ({"use": "a", "x": 1}, "a", {"use": "a"}),
        ({"use": "a", "x": 1}, {"y": 2}, {"use": "a", "x": 1, "y": 2}),
        ({"t": {"use": "a", "x": 1}, "z": 0}, {"t": {"use": "a"}}, {"t": {"use": "a"}, "z": 0}),
        ([{"use": "a", "x": 1}, "b"], {"a": {"use": "a", "y": 2}}, [{"use": "a", "y": 2}, "b"]),
    ],
)
def test_laid_over_a_composition_a_named_part_is_described_anew(base: Any, over: Any, result: Any) -> None:
    assert plain(merge(tree({"v": base}), tree({"v": over}), [], anew=True)) == {"v": result}
    put_there = put(tree({"v": base}), ("v",), tree(over), [], anew=True)
    assert put_there is not None
    assert plain(put_there) == {"v": result}


def test_an_entry_that_is_not_there_is_a_fault_of_who_asked_for_it() -> None:
    result, (fault,) = merged({"v": [{"use": "a"}]}, {"v": {"b": {"x": 1}}})
    assert result == {"v": [{"use": "a"}]}
    assert fault.path == "v.b"
    assert "Entries: a." in fault.hint


def test_nothing_is_put_below_a_place_that_is_empty() -> None:
    assert put(tree({"a": "none"}), ("a", "x"), tree(1), []) is None
