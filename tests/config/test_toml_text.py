"""Annotated TOML: valid, and its comments are the only difference from the data."""

from __future__ import annotations

from typing import Any

import tomli
from hypothesis import given
from hypothesis import strategies as st

from curvlab.config.toml_text import annotated
from curvlab.config.tree import Origin, node_of

KEYS = st.one_of(
    st.sampled_from(["lr", "a.b", "*.weight", "", 'q"']), st.text(max_size=3).filter(str.isprintable)
)
VALUES = st.recursive(
    st.one_of(
        st.integers(-(2**63), 2**63 - 1),
        st.booleans(),
        st.floats(allow_nan=False),
        st.text(st.characters(codec="utf-8")),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=10,
)


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_the_text_reads_back_as_the_data(data: dict[str, Any]) -> None:
    text = annotated(node_of(data, lambda path: Origin("from = [here] # there")))
    assert tomli.loads(text) == data


def test_every_value_says_where_it_came_from() -> None:
    tree = node_of(
        {"run": {"steps": 3, "name": "x"}}, lambda path: Origin(f"layer {path[-1] if path else ''}")
    )
    assert annotated(tree) == '[run]\nsteps = 3  # layer steps\nname = "x"  # layer name\n'
