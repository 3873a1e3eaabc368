"""Rows of a layer's calls become rows of the examples of the loss."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvlab.errors import ConfigError
from curvlab.linalg.lookups import Lookups
from curvlab.model.arrangement import Arrangement, Called, arranged, merged
from curvlab.objectives.statistics import thinned, unaveraged


def called(*axes: int) -> Called:
    return Called(axes, torch.Size(axes).numel())


def rows(*axes: int, d: int = 3) -> Tensor:
    """What a reader makes of a linear layer's input on these axes."""
    x = torch.arange(torch.Size((*axes, d)).numel(), dtype=torch.float64)
    return x.view(axes[0], -1, d)


def of(examples: int, *calls: tuple[int, ...]) -> Arrangement:
    return arranged("layer", [called(*axes) for axes in calls], examples)


def test_calls_on_the_examples_lie_side_by_side() -> None:
    a, b = rows(6, 2), rows(6)
    assert torch.equal(of(6, (6, 2), (6,))([a, b]), torch.cat([a, b], 1))


def test_time_first_becomes_examples_first() -> None:
    x = torch.randn(5, 6, 2, 3)
    got = of(6, (5, 6, 2))([x.view(5, 12, 3)])
    assert torch.equal(got, x.movedim(1, 0).reshape(6, 10, 3))
    vectors = torch.randn(4, 5, 6, 3)
    assert torch.equal(of(6, (5, 6))([vectors]), vectors.movedim(2, 1))


def test_examples_merged_with_positions_come_apart_in_order() -> None:
    x = rows(6, 4)
    assert torch.equal(of(2, (6, 4))([x]), x.view(2, 12, 3))
    assert torch.equal(of(8, (2, 4))([x[:2]]), x[:2].reshape(8, 1, 3))


def test_calls_on_parts_of_the_batch_are_the_batch_in_order() -> None:
    x = rows(6, 2)
    assert torch.equal(of(6, (3, 2), (3, 2))([x[:3], x[3:]]), x)
    each = of(6, *[(1, 6)] * 6)
    assert each.how == "side by side"  # along an axis of that length
    singles = [Called((1,), 6)] * 6  # a convolution's positions are no examples
    assert torch.equal(arranged("conv", singles, 6)(list(x.view(6, 1, 2, 3))), x.view(6, 2, 3))


@pytest.mark.parametrize(
    ("examples", "axes"), [(3, [(1, 6)]), (6, [(3, 2), (3, 2)]), (5, [(4, 2)]), (2, [(3, 2)])], ids=str
)
def test_lookups_are_arranged_as_the_rows_they_stand_for(examples: int, axes: list[tuple[int, int]]) -> None:
    how = of(examples, *axes)
    parts = [Lookups(torch.arange(a * b).view(a, b), d=8, dtype=torch.float64) for a, b in axes]
    found = how.inputs(parts)
    assert isinstance(found, Lookups)
    assert torch.equal(found.dense(), how([p.dense() for p in parts]))


def test_rows_that_are_no_multiple_are_each_on_their_own() -> None:
    x, y = rows(4, 2), rows(3)
    how = of(7, (4, 2), (3,))
    assert not how.by_example
    assert torch.equal(how([x, y]), torch.cat([x.view(8, 1, 3), y], 0))
    assert how([x.expand(5, 4, 2, 3), y.expand(5, 3, 1, 3)]).shape == (5, 11, 1, 3)


@pytest.mark.parametrize("axes", [(4, 2), (3, 2, 2), (6, 3, 2)])
def test_what_can_be_read_in_two_ways_is_refused_in_words(axes: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigError, match=r'layer "layer" was called on leading axes .* in a batch of 2 examples'
    ):
        of(2, axes)


def test_a_single_example_has_all_the_rows() -> None:
    assert of(1, (4, 1, 2))([rows(4, 1, 2)]).shape == (1, 8, 3)


def test_passes_of_other_lengths_are_rows_on_their_own() -> None:
    x, y = torch.randn(2, 6, 4), torch.randn(3, 2, 4)  # two groups
    g, h = torch.randn(5, 2, 3, 7), torch.randn(5, 3, 1, 7)
    inputs, (grads,) = merged([x, y], [[g, h]], groups=2)
    assert inputs.shape == (9, 2, 4)
    assert grads.shape == (5, 9, 1, 7)
    assert torch.equal(inputs[6:], y)
    assert torch.equal(grads[:, :6, 0], g.flatten(1, 2))


def test_scales() -> None:
    assert unaveraged(8, 4) == 16.0
    assert thinned(2, 8) == 0.5
    assert thinned(8, 8) == 1.0
