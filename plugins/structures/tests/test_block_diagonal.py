"""Block-diagonal matrices: blocks that are not symmetric, and products that copy nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from curvlab.errors import ConfigError
from curvlab.linalg.factors import Squared
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab_structures.block_diagonal import FEW, FORMED, BlockDiagonal, BlockDiagonalMatrix
from plugins.structures.tests.walks import assert_stands_for, drawn, one_sided_twice, walk

each_size = pytest.mark.parametrize("size", [1, 2, 3, 4, 20])
each_dimension = pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 12])


def pattern(size: int, d: int) -> Tensor:
    """Where a matrix may differ from zero: rows and columns of one block."""
    block = torch.arange(d) // size
    return block[:, None] == block


@each_size
@each_dimension
def test_after_twenty_updates_it_stands_for_its_matrix(size: int, d: int) -> None:
    K, A = walk(BlockDiagonal(size), d)
    assert_stands_for(K, A, one_sided_twice(pattern(size, d)))


def test_blocks_lose_their_symmetry() -> None:
    """So the law above tells a transpose from none: the public package's blocks have none (specs 7.9)."""
    A = walk(BlockDiagonal(4), 12)[1]
    assert float((A - A.mT).abs().max()) > 0.05 * float(A.abs().max())


@each_size
@each_dimension
def test_the_pattern_is_blocks_the_last_of_the_dimensions_left_over(size: int, d: int) -> None:
    M = drawn(BlockDiagonal(size), d, 0)
    assert torch.equal(M.dense() != 0, pattern(size, d))
    expected = {"blocks": (d // size, size, size), "rest": (d % size, d % size)}
    assert {k: tuple(t.shape) for k, t in M.tensors().items()} == {
        k: shape for k, shape in expected.items() if min(shape)
    }


class Made(TorchDispatchMode):
    """How many numbers operations put into memory of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.seen[out.untyped_storage().data_ptr()] = out  # kept alive, so that no address comes twice
        return out

    def numbers(self, *given: Tensor) -> int:
        """Not counting the memory of ``given``."""
        old = {t.untyped_storage().data_ptr() for t in given}
        fresh = [t for place, t in self.seen.items() if place not in old]
        return sum(t.untyped_storage().nbytes() // t.element_size() for t in fresh)


@pytest.mark.parametrize("d", [12, 14])
def test_a_product_with_more_than_few_vectors_makes_its_result_and_nothing_else(d: int) -> None:
    K, X = drawn(BlockDiagonal(4), d, 0), normal(FEW, d, seed=1)
    stored = tuple(K.tensors().values())
    for product in (lambda: K.rmatmul(X), lambda: K @ X.mT):
        with Made() as made:
            product()
        assert made.numbers(X, *stored) == FEW * d


def test_a_small_gramian_is_formed_and_a_large_one_is_not() -> None:
    small, large = BlockDiagonal(FORMED), BlockDiagonal(FORMED + 1)
    for d in (3, FORMED + 5):
        assert isinstance(small.gramian(drawn(small, d, 0)), BlockDiagonalMatrix)
    assert isinstance(large.gramian(drawn(large, FORMED + 5, 0)), Squared)
    assert isinstance(large.gramian(drawn(large, FORMED, 0)), BlockDiagonalMatrix)


def test_a_congruence_of_many_rows_takes_the_cheaper_way_to_the_same_member() -> None:
    family = BlockDiagonal(3)
    K, X = drawn(family, 8, 0), normal(24, 8, seed=1)
    few = family.zeros(8, like=X)
    for rows in X.split(4):
        few.combine_(1.0, family.congruence(K, rows), 1.0)
    assert_close(family.congruence(K, X).dense(), few.dense(), dimension=100)


def test_a_size_below_one_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="size = 0 must be at least 1"):
        BlockDiagonal(0)


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
@pytest.mark.parametrize(("size", "d"), [(15, 37), (30, 95), (13, 30)])
def test_blocks_nearly_as_wide_as_a_vector_are_multiplied_as_such(
    size: int, d: int, batch: tuple[int, ...]
) -> None:
    """The first two are filled up with zeros, the last is not; with a smaller block beside them."""
    family = BlockDiagonal(size)
    K, X = drawn(family, d, 0), normal(*batch, 3 * size, d, seed=1)
    stacked = family.member(K.dense().expand(*batch, d, d))
    S = X @ K.dense()
    expected = family.project(S.mT @ S).dense()
    scale = float(S.square().sum(-2).max())
    assert_close(family.congruence(stacked, X).dense(), expected, dimension=3 * size, scale=scale)


@pytest.mark.parametrize("rows", [1, FEW - 1, FEW, 2 * FEW])
def test_few_rows_and_many_are_multiplied_alike(rows: int) -> None:
    K, x = drawn(BlockDiagonal(4), 11, 0), normal(rows, 11, seed=1)
    A = K.dense()
    assert_close(K.rmatmul(x), x @ A, dimension=4, scale=float(x.abs().max() * A.abs().max()))
    assert_close(K @ x.mT, A @ x.mT, dimension=4, scale=float(x.abs().max() * A.abs().max()))
