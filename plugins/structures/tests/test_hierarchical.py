"""Hierarchical matrices: their form at every dimension, and the dense and arrow matrices among them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvlab.errors import ConfigError
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab_structures.arrow import Arrow, LowerArrow, UpperArrow
from curvlab_structures.hierarchical import Hierarchical
from plugins.structures.tests.walks import assert_stands_for, drawn, one_sided_twice, walk

FAMILIES = [Hierarchical(t, b) for t, b in ((1, 1), (2, 1), (1, 3), (3, 2), (4, 4))]
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 13)

each_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
each_size = pytest.mark.parametrize("d", SIZES)


def pattern(family: Hierarchical, d: int) -> Tensor:
    """``[[A, B₁, B₂], [0, Diag D, 0], [0, E₁, E₂]]``, block by block."""
    t = min(family.top, d)
    b = min(family.bottom, d - t)
    m = d - t - b
    P = torch.zeros(d, d, dtype=torch.bool)
    P[:t, :] = True  # A, B₁, B₂
    P[t : t + m, t : t + m] = torch.eye(m, dtype=torch.bool)
    P[t + m :, t:] = True  # E₁, E₂
    return P


@each_family
@each_size
def test_the_pattern_is_two_blocks_with_their_rows_and_a_diagonal(family: Hierarchical, d: int) -> None:
    P = pattern(family, d)
    assert torch.equal(drawn(family, d, 0).dense() != 0, P)
    assert family.scalars(d) == int(P.sum())


@pytest.mark.parametrize("d", [30, 31, 785])
def test_storage_is_that_of_the_published_table(d: int) -> None:
    k = 15
    middle = d - 2 * k
    assert Hierarchical().scalars(d) == k * k + k * (d - k) + middle + k * middle + k * k


@each_family
@each_size
def test_after_twenty_updates_it_stands_for_its_matrix(family: Hierarchical, d: int) -> None:
    K, A = walk(family, d)
    assert_stands_for(K, A, one_sided_twice(pattern(family, d)))


def test_both_blocks_lose_their_symmetry() -> None:
    """So the law above tells a transpose from none."""
    A = walk(Hierarchical(4, 4), 13)[1]
    for block in (A[:4, :4], A[-4:, -4:]):
        assert float((block - block.mT).abs().max()) > 0.05 * float(block.abs().max())


@pytest.mark.parametrize("d", [1, 4, 7])
@pytest.mark.parametrize("bottom", [1, 5])
def test_with_a_top_as_large_as_the_matrix_updates_are_dense_ones(d: int, bottom: int) -> None:
    """Through the rule of inverse-free methods, m = ½ (Kᵀ XᵀX K + KᵀK − I), which no projection cuts."""
    family = Hierarchical(top=d, bottom=bottom)
    K, A = family.eye(d, like=torch.zeros(1).double()), torch.eye(d).double()
    for step in range(20):
        X = normal(6, d, seed=step) / 6**0.5
        m = family.congruence(K, X).combine_(0.5, family.square(K), 0.5).shift_(-0.5)
        K = K.combine_(1.0, family.product(K, m), -0.2)
        A = A - 0.1 * A @ (A.mT @ X.mT @ X @ A + A.mT @ A - torch.eye(d).double())
    assert_close(K.dense(), A, dimension=d, condition=1000.0)


#: the arrows among them: with dense rows at the top, and with dense rows at the bottom beside one more index
ARROWS: list[tuple[Arrow, Hierarchical, int]] = [
    (UpperArrow(rows=3, corner="top"), Hierarchical(top=3, bottom=1), 0),
    (LowerArrow(rows=3, corner="bottom"), Hierarchical(top=1, bottom=3), 1),
]


@pytest.mark.parametrize(("arrow", "family", "beside"), ARROWS, ids=str)
@pytest.mark.parametrize("d", [4, 5, 9])
def test_arrows_with_dense_rows_are_among_them(
    arrow: Arrow, family: Hierarchical, beside: int, d: int
) -> None:
    """A subgroup: products stay in it; squares are the same where both have entries, K Kᵀ everywhere."""
    one = torch.eye(beside).double()
    K, M, X = drawn(arrow, d, 0), drawn(arrow, d, 1), normal(5, beside + d, seed=2)
    H, N = (family.member(torch.block_diag(one, A.dense())) for A in (K, M))
    assert torch.equal(H.dense(), torch.block_diag(one, K.dense()))
    products = torch.block_diag(one, arrow.product(K, M).dense())
    assert_close(family.product(H, N).dense(), products, scale=10.0)
    there, here = family.gramian(H).rmatmul(X)[:, beside:], arrow.gramian(K).rmatmul(X[:, beside:])
    assert_close(there, here, scale=10.0)
    square = arrow.square(K).dense()
    assert_close(family.square(H).dense()[beside:, beside:] * (square != 0), square, scale=10.0)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [((0, 1), "top = 0 must be at least 1"), ((1, -1), "bottom = -1 must be at least 1")],
)
def test_wrong_sizes_are_refused_by_name(sizes: tuple[int, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Hierarchical(*sizes)
