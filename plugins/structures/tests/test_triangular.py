"""Triangular matrices: packed without a gap, multiplied in panels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvlab.testing.asserts import assert_close
from curvlab.testing.costs import counted, operations
from curvlab.testing.dispatch import largest
from curvlab.testing.problems import normal
from curvlab_structures import triangular
from curvlab_structures.triangular import LowerTriangular, Triangular, UpperTriangular
from plugins.structures.tests.walks import assert_stands_for, drawn, one_sided_twice, walk

each_family = pytest.mark.parametrize("family", [LowerTriangular(), UpperTriangular()], ids=str)


def pattern(family: Triangular, d: int) -> Tensor:
    ones = torch.ones(d, d, dtype=torch.bool)
    return ones.tril() if family.below else ones.triu()


@each_family
@pytest.mark.parametrize("d", [1, 2, 3, 4, 5, 8, 13, 16])
@pytest.mark.parametrize(("width", "vector"), [(128, 16), (2, 1), (3, 2), (1, 1)])
def test_after_twenty_updates_it_stands_for_its_matrix(
    family: Triangular, d: int, width: int, vector: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one panel, and in as many as a large matrix has."""
    monkeypatch.setattr(triangular, "WIDTH", width)
    monkeypatch.setattr(triangular, "VECTOR", vector)
    K, A = walk(family, d)
    assert_stands_for(K, A, one_sided_twice(pattern(family, d)))


@each_family
def test_the_pattern_is_a_triangle(family: Triangular) -> None:
    for d in (1, 2, 5, 6):
        assert torch.equal(drawn(family, d, 0).dense() != 0, pattern(family, d))


def test_a_transposed_lower_triangle_is_the_upper_one() -> None:
    d = 9
    lower = drawn(LowerTriangular(), d, 0)
    upper, X = UpperTriangular().member(lower.dense().mT), normal(4, d, seed=1)
    assert_close(upper.rmatmul(X), (lower @ X.mT).mT, dimension=d)
    assert upper.tensors()["packed"].shape == lower.tensors()["packed"].shape


@each_family
@pytest.mark.parametrize("d", [300, 301])
def test_nothing_larger_than_the_triangle_is_made(family: Triangular, d: int) -> None:
    for name, operation in operations(family, d, 4):
        assert largest(operation) <= family.scalars(d), name


@each_family
def test_panels_save_what_they_promise(family: Triangular) -> None:
    """At d = 1024: a third of a dense product's flops and a panel's waste, and 0.62 of those with vectors."""
    d, n = 1024, 16
    K, X = family.eye(d, like=torch.zeros(1)), torch.ones(n, d)
    for operation, dense, share in (
        (lambda: family.product(K, K), 2 * d**3, 0.25),
        (lambda: family.square(K), 2 * d**3, 0.25),
        (lambda: K.rmatmul(X), 2 * n * d**2, 0.62),
        (lambda: family.congruence(K, X), 4 * n * d**2, 0.62),
    ):
        flops, _ = counted(operation)
        assert 0.1 * dense < flops < share * dense
