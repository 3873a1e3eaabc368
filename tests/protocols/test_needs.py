"""Needs are united as sets are, and what a step costs is their sum."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curvlab.protocols.needs import GRADIENT_ONLY, Labels, Needs

quick = settings(max_examples=60, deadline=None, derandomize=True)

needs = st.builds(
    Needs,
    layers=st.frozensets(st.sampled_from(list(Labels))),
    samples=st.integers(0, 3),
    factored=st.booleans(),
    implicit=st.booleans(),
    products=st.integers(0, 40),
    losses=st.integers(0, 20),
)


@quick
@given(needs, needs, needs)
def test_the_order_of_union_does_not_matter_and_the_gradient_alone_adds_nothing(
    a: Needs, b: Needs, c: Needs
) -> None:
    assert a | b == b | a
    assert (a | b) | c == a | (b | c)
    assert a | GRADIENT_ONLY == a
    assert Needs() == GRADIENT_ONLY


@quick
@given(needs, needs)
def test_a_union_holds_everything_both_asked_for(a: Needs, b: Needs) -> None:
    both = a | b
    assert both.layers == a.layers | b.layers
    assert both.samples == max(a.samples, b.samples)
    assert (both.products, both.losses) == (a.products + b.products, a.losses + b.losses)
    assert both.factored == (a.factored or b.factored)
    assert both.implicit == (a.implicit or b.implicit)
    assert both.ggn == (a.ggn or b.ggn)


@quick
@given(needs)
def test_the_ggn_is_carried_for_products_and_for_estimates_of_it(a: Needs) -> None:
    assert a.ggn == (a.implicit or a.products > 0)


@quick
@given(needs, needs)
def test_what_a_plain_backward_lacks_is_said_for_each_thing_asked(a: Needs, b: Needs) -> None:
    plain = a.layers <= {Labels.DATA, Labels.NONE} and not a.ggn and not a.losses
    assert bool(a.objective) == (not plain)
    assert set((a | b).objective) == set(a.objective) | set(b.objective)


def test_words_name_the_labels() -> None:
    asked = Needs(layers=frozenset({Labels.MODEL, Labels.DATA}), products=2, losses=1).objective
    assert asked == ("layer statistics for labels = 'model'", "Gauss-Newton products", "trial losses")
    assert str(Labels.EXACT) == "exact"


@pytest.mark.parametrize(("one", "other", "both"), [(5, 9, 9), (0, 9, 0), (5, 0, 0), (0, 0, 0)])
def test_of_layer_statistics_there_are_enough_for_everybody(one: int, other: int, both: int) -> None:
    model = frozenset({Labels.MODEL})
    assert (Needs(model, layer_examples=one) | Needs(model, layer_examples=other)).layer_examples == both


def test_who_asks_for_no_layer_statistics_does_not_say_of_how_many() -> None:
    few = Needs(frozenset({Labels.MODEL}), layer_examples=5)
    assert (few | Needs(factored=True)).layer_examples == (Needs(factored=True) | few).layer_examples == 5


@pytest.mark.parametrize("labels", list(Labels))
def test_labels_are_drawn_only_where_they_are_sampled_from_the_model(labels: Labels) -> None:
    found = Needs.statistics(labels, 3, layer_examples=5, factored=True)
    assert found.layers == {labels}
    assert found.samples == (3 if labels is Labels.MODEL else 0)
    assert (found.layer_examples, found.factored) == (5, True)
