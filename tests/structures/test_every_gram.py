"""What every structure owes that holds Gram matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curvlab.errors import NotPositiveDefinite
from curvlab.protocols.structure import Family, Gram
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab.testing.reference import Lapack
from tests.structures.members import each_gram, gram, quick, seeds, size, sizes

forgetting = st.sampled_from([0.0, 0.5, 0.95])


@each_gram
@quick
@given(d=sizes, n=st.integers(1, 6), seed=seeds, keep=forgetting)
def test_an_average_is_the_projection_of_the_dense_one(
    family: Family, d: int, n: int, seed: int, keep: float
) -> None:
    """By value where projections are continuous; else by what it is to be: nearest, and of the same trace."""
    assert isinstance(family, Gram)
    M, X = gram(family, d, seed), normal(n, d, seed=seed + 1)
    dense, kept = keep * M.dense() + 0.3 * X.mT @ X, X.clone()
    expected = family.project(dense).dense()
    if M.family.linear:
        expected = keep * M.dense() + family.project(0.3 * X.mT @ X).dense()
    family.average_(M, keep, X, 0.3, Lapack())
    assert torch.equal(X, kept)
    if M.family.linear:
        assert_close(M.dense(), expected, dimension=n + d, scale=size(expected))
        return
    assert_close((M.dense() - dense).norm(), (expected - dense).norm(), dimension=d**2, scale=size(dense))
    assert_close(M.dense().trace(), dense.trace(), dimension=n * d)


@each_gram
@quick
@given(d=sizes, seed=seeds)
def test_averages_are_symmetric_and_positive(family: Family, d: int, seed: int) -> None:
    M = gram(family, d, seed, rows=1).dense()
    assert_close(M, M.mT, dimension=d, scale=size(M))
    assert float(torch.linalg.eigvalsh(M)[0]) >= -1e-13 * size(M) * d


@each_gram
@quick
@given(d=sizes, seed=seeds, shift=st.sampled_from([1e-3, 0.1, 10.0]), boxed=st.booleans())
def test_an_inverse_is_that_of_the_damped_dense_matrix(
    family: Family, d: int, seed: int, shift: float, boxed: bool
) -> None:
    assert isinstance(family, Gram)
    M = gram(family, d, seed)
    before = M.dense().clone()
    damped = before + shift * torch.eye(d).double()
    inverse = family.inverse(M, torch.tensor(shift, dtype=torch.float64) if boxed else shift, Lapack())
    X = normal(d, 3, seed=seed + 9)
    condition = float(torch.linalg.cond(damped))
    assert_close(inverse @ X, torch.linalg.solve(damped, X), dimension=d, condition=condition)
    assert_close(inverse.rmatmul(X.mT), torch.linalg.solve(damped, X).mT, dimension=d, condition=condition)
    assert torch.equal(M.dense(), before)
    family.average_(M, 0.5, X.mT, 1.0, Lapack())  # an inverse does not change with what it is of
    assert_close(inverse @ X, torch.linalg.solve(damped, X), dimension=d, condition=condition)


@each_gram
@pytest.mark.parametrize("d", [1, 5])
def test_what_is_not_positive_definite_is_not_inverted(family: Family, d: int) -> None:
    assert isinstance(family, Gram)
    for wrong in (
        family.project(-torch.eye(d).double()),
        family.project(torch.full((d, d), torch.nan).double()),
    ):
        with pytest.raises(NotPositiveDefinite):
            family.inverse(wrong, 0.5, Lapack())


@each_gram
@pytest.mark.parametrize("d", [1, 5])
def test_rows_that_are_not_finite_are_found_when_a_factor_is_inverted(family: Family, d: int) -> None:
    assert isinstance(family, Gram)
    M, X = gram(family, d, 0), normal(3, d, seed=1)
    X[1, 0] = torch.nan
    family.average_(M, 0.5, X, 1.0, Lapack())
    with pytest.raises(NotPositiveDefinite):
        family.inverse(M, 0.5, Lapack())


@each_gram
@quick
@given(d=sizes, seed=seeds)
def test_eigenvalues_and_vectors_make_the_matrix_again(family: Family, d: int, seed: int) -> None:
    assert isinstance(family, Gram)
    M = gram(family, d, seed, rows=max(1, d - 1))  # singular where d > 1
    before = M.dense().clone()
    values, vectors = family.eigh(M, Lapack())
    assert bool((values >= 0).all())
    Q = torch.eye(d).double() if vectors is None else vectors
    assert isinstance(M.family, Gram)
    assert (vectors is None) == (not M.family.rotates)
    assert_close(Q.mT @ Q, torch.eye(d).double())
    assert_close(Q * values @ Q.mT, before, dimension=d, scale=size(before))
    assert torch.equal(M.dense(), before)
