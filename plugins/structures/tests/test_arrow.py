"""Arrows: all four mirror images, which differ in where the head is and in nothing else."""

from __future__ import annotations

from itertools import product
from typing import Literal

import pytest
import torch
from torch import Tensor

from curvlab.errors import ConfigError
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab_structures.arrow import Arrow, LowerArrow, UpperArrow
from plugins.structures.tests.walks import assert_stands_for, drawn, one_sided_twice, walk

CORNERS: tuple[Literal["top", "bottom"], ...] = ("top", "bottom")
FAMILIES = [side(k, c) for side, k, c in product((UpperArrow, LowerArrow), (1, 2, 4), CORNERS)]
SIZES = (1, 2, 3, 4, 5, 6, 11)

each_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
each_size = pytest.mark.parametrize("d", SIZES)


def pattern(family: Arrow, d: int) -> Tensor:
    """Where a matrix of the family may differ from zero, entry by entry."""
    k = min(family.rows, d)
    head = set(range(k) if family.corner == "top" else range(d - k, d))
    P = torch.zeros(d, d, dtype=torch.bool)
    for i, j in product(range(d), range(d)):
        touches = i in head or j in head
        in_triangle = i <= j if family.upper else i >= j
        P[i, j] = i == j or (i in head and j in head) or (touches and in_triangle)
    return P


@each_family
@each_size
def test_the_pattern_is_a_corner_a_border_and_a_diagonal(family: Arrow, d: int) -> None:
    P = pattern(family, d)
    assert torch.equal(drawn(family, d, 0).dense() != 0, P)
    assert family.scalars(d) == int(P.sum())


@each_family
@each_size
def test_after_twenty_updates_it_stands_for_its_matrix(family: Arrow, d: int) -> None:
    K, A = walk(family, d)
    assert_stands_for(K, A, one_sided_twice(pattern(family, d)))


def test_a_corner_loses_its_symmetry() -> None:
    """So the law above tells a transpose from none."""
    A = walk(UpperArrow(rows=4), 11)[1][:4, :4]
    assert float((A - A.mT).abs().max()) > 0.05 * float(A.abs().max())


@each_size
@pytest.mark.parametrize("corner", CORNERS)
@pytest.mark.parametrize("k", [1, 3])
def test_lower_ones_are_the_transposes_of_upper_ones(
    k: int, corner: Literal["top", "bottom"], d: int
) -> None:
    upper, lower = UpperArrow(k, corner), LowerArrow(k, corner)
    K = drawn(upper, d, 0)
    L = lower.member(K.dense().mT)
    X = normal(4, d, seed=1)
    assert torch.equal(L.dense(), K.dense().mT)
    assert_close(L.rmatmul(X), (K @ X.mT).mT, scale=10.0)
    assert_close(lower.square(L).dense(), _onto(lower, K.dense() @ K.dense().mT), scale=10.0)


@each_size
@pytest.mark.parametrize("k", [1, 3])
def test_reversed_indices_swap_the_triangle_and_the_corner(k: int, d: int) -> None:
    top, bottom = UpperArrow(k, "top"), LowerArrow(k, "bottom")
    K, M, X = drawn(top, d, 0), drawn(top, d, 1), normal(4, d, seed=1)
    F, N = (bottom.member(A.dense().flip(0, 1)) for A in (K, M))
    assert torch.equal(F.dense(), K.dense().flip(0, 1))
    for there, here in (
        (bottom.product(F, N), top.product(K, M)),
        (bottom.square(F), top.square(K)),
        (bottom.congruence(F, X.flip(1)), top.congruence(K, X)),
    ):
        assert_close(there.dense().flip(0, 1), here.dense(), scale=10.0 * d)
    there, here = (f.gramian(A).rmatmul(Y) for f, A, Y in ((bottom, F, X.flip(1)), (top, K, X)))
    assert_close(there.flip(1), here, scale=10.0 * d)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f.rows == 4], ids=str)
@pytest.mark.parametrize("d", [1, 3, 4])
def test_no_larger_than_the_corner_it_is_dense(family: Arrow, d: int) -> None:
    K, dense = drawn(family, d, 0), Dense()
    D, X = dense.member(K.dense()), normal(5, d, seed=1)
    assert family.scalars(d) == d * d
    assert_close(family.congruence(K, X).dense(), dense.congruence(D, X).dense(), scale=10.0 * d)
    assert_close(family.product(K, K).dense(), dense.product(D, D).dense(), scale=10.0 * d)
    assert_close(family.gramian(K) @ X.mT, K.dense() @ K.dense().mT @ X.mT, scale=10.0 * d)


@each_family
def test_products_with_k_kt_take_little_more_than_two_borders(family: Arrow) -> None:
    """k rows there and k rows back; a dense product takes d."""
    d, n = 101, 10
    G, k = family.gramian(drawn(family, d, 0)), family.rows
    assert G.flops(n) <= (4 * k + 1) * d * n


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rows": 0}, "rows = 0 must be at least 1"),
        ({"corner": "left"}, 'corner = \'left\' must be "top" or "bottom"'),
    ],
)
def test_wrong_settings_are_refused_by_name(settings: dict[str, int | str], words: str) -> None:
    for side in (UpperArrow, LowerArrow):
        with pytest.raises(ConfigError, match=words):
            side(**settings)  # type: ignore[arg-type]


def _onto(family: Arrow, S: Tensor) -> Tensor:
    return one_sided_twice(pattern(family, len(S)))(S)
