"""Names: one word for a configuration, a distribution, a package, a module and a class."""

from __future__ import annotations

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curvlab.errors import UsageError
from curvlab.scaffold.names import LONGEST, names_of

WORD = st.from_regex(r"[a-z][a-z0-9]{0,6}", fullmatch=True)


def test_a_name_is_a_distribution_a_package_and_a_class() -> None:
    names = names_of("my-arrow", "structure", frozenset())
    assert (names.distribution, names.package, names.module) == (
        "curvlab-my-arrow",
        "curvlab_my_arrow",
        "my_arrow",
    )
    assert names.class_name == "MyArrow"


@given(st.lists(WORD, min_size=1, max_size=4).map("-".join))
def test_every_accepted_name_is_an_identifier_that_python_leaves_free(name: str) -> None:
    try:
        names = names_of(name, "step", frozenset())
    except UsageError:
        assert len(name) > LONGEST or name == "none" or keyword.iskeyword(name.replace("-", "_"))
        return
    for word in (names.module, names.package, names.class_name):
        assert word.isidentifier()
        assert not keyword.iskeyword(word)


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("MyArrow", "my-arrow"),
        ("my_arrow", "my-arrow"),
        ("My Arrow", "my-arrow"),
        ("my--arrow", "my-arrow"),
        ("-arrow-", "arrow"),
        ("my.arrow", "my-arrow"),
    ],
)
def test_a_name_of_another_form_is_refused_with_one_that_would_do(name: str, instead: str) -> None:
    with pytest.raises(UsageError, match=f'use "{instead}"'):
        names_of(name, "structure", frozenset())


@pytest.mark.parametrize("name", ["", "3d", "..", "../up", "a/b", "é", "arrow\n", "none", "class", "true"])
def test_what_cannot_name_a_plugin_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not a valid plugin name"):
        names_of(name, "structure", frozenset())


def test_a_name_may_be_as_long_as_lines_allow_and_no_longer() -> None:
    assert names_of("a" * LONGEST, "step", frozenset()).name == "a" * LONGEST
    with pytest.raises(UsageError, match=f"{LONGEST + 1} characters"):
        names_of("a" * (LONGEST + 1), "step", frozenset())


def test_a_class_does_not_take_a_name_that_its_module_needs() -> None:
    assert names_of("tensor", "structure", frozenset({"Tensor"})).class_name == "TensorStructure"
