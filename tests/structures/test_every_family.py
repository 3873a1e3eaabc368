"""What every structure owes, whatever its pattern: families come from the registry, with their settings.

A family registered tomorrow is tested tomorrow, at every dimension from 1 to 9 and with every
combination of small values of its settings.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvlab.engine.state import export, nbytes, restore
from curvlab.errors import NotPositiveDefinite
from curvlab.protocols.structure import Family, Gram, Group, NaiveFallback, Structure
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab.testing.reference import Lapack, entries, nearest_member
from tests.limits.registered import families

FAMILIES = families()
GRAMS = [f for f in FAMILIES if isinstance(f, Gram)]
GROUPS = [f for f in FAMILIES if isinstance(f, Group)]

each_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
each_gram = pytest.mark.parametrize("family", GRAMS, ids=str)
each_group = pytest.mark.parametrize("family", GROUPS, ids=str)
quick = settings(max_examples=20, deadline=None, derandomize=True)
sizes, seeds = st.integers(1, 9), st.integers(0, 999)

LIKE = torch.zeros(1, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _dense_detours_are_allowed() -> Iterator[None]:
    """A family may still be slow; that it must be right is what these tests say."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NaiveFallback)
        yield


def symmetric(d: int, seed: int) -> Tensor:
    S = normal(d, d, seed=seed)
    return S + S.mT


def member(family: Family, d: int, seed: int) -> Structure:
    """Any member: every stored scalar drawn, so symmetric only if the pattern is."""
    M = family.zeros(d, like=LIKE)
    for k, t in enumerate(M.tensors().values()):
        t.copy_(normal(*t.shape, seed=seed + k))
    return M


def gram(family: Family, d: int, seed: int, rows: int | None = None) -> Structure:
    """A PSD member: the average of a Gram matrix."""
    assert isinstance(family, Gram)
    M = family.zeros(d, like=LIKE)
    family.average_(M, 0.0, normal(rows or d + 2, d, seed=seed), 1.0, Lapack())
    return M


def size(*tensors: Tensor) -> float:
    return max(1.0, *(float(t.abs().max()) for t in tensors))


# every family


@each_family
@quick
@given(d=sizes, seed=seeds)
def test_a_projection_has_the_nearest_symmetric_part(family: Family, d: int, seed: int) -> None:
    """The one rule of all structures: Π(S) = argmin ‖½ (Z + Zᵀ) − S‖ over members Z."""
    S = symmetric(d, seed)
    assert_close(family.project(S).dense(), nearest_member(family, S), dimension=d * d, scale=size(S))


@each_family
@quick
@given(d=sizes, seed=seeds)
def test_projections_are_linear_and_do_not_share_memory(family: Family, d: int, seed: int) -> None:
    S, T = symmetric(d, seed), symmetric(d, seed + 1)
    left, right = family.project(S), family.project(T)
    both = family.project(2.0 * S - 3.0 * T).dense()
    assert_close(both, 2.0 * left.dense() - 3.0 * right.dense(), dimension=d, scale=5 * size(S, T))
    kept = S.clone()
    for t in left.tensors().values():
        t.zero_()
    assert torch.equal(S, kept), "the projection keeps a view of its argument"


@each_family
@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 30])
def test_scalars_are_those_that_are_stored(family: Family, d: int) -> None:
    M = family.zeros(d, like=LIKE)
    assert sum(t.numel() for t in M.tensors().values()) == family.scalars(d)
    assert all(t.dtype == LIKE.dtype for t in M.tensors().values())
    assert M.d == d
    assert M.family == family
    assert nbytes(M) == family.scalars(d) * LIKE.element_size()


@each_family
@pytest.mark.parametrize("d", [1, 3, 8])
def test_zeros_and_eye_are_zero_and_the_identity(family: Family, d: int) -> None:
    assert torch.equal(family.zeros(d, like=LIKE).dense(), torch.zeros(d, d).double())
    assert torch.equal(family.eye(d, like=LIKE).dense(), torch.eye(d).double())
    single = family.eye(d, like=torch.zeros(1))
    assert {t.dtype for t in single.tensors().values()} == {torch.float32}


@each_family
@quick
@given(d=sizes, k=st.integers(1, 4), seed=seeds)
def test_products_are_those_of_the_dense_matrix(family: Family, d: int, k: int, seed: int) -> None:
    M, X, Y = member(family, d, seed), normal(d, k, seed=seed + 50), normal(k, d, seed=seed + 51)
    scale = size(M.dense()) * size(X, Y) * d
    assert_close(M @ X, M.dense() @ X, dimension=d, scale=scale)
    expected = Y @ M.dense()
    assert_close(M.rmatmul(Y), expected, dimension=d, scale=scale)
    out = torch.full_like(Y, torch.nan)
    assert M.rmatmul(Y, out) is out
    assert_close(out, expected, dimension=d, scale=scale)
    buffer = torch.full((2 * k, d + 3), torch.nan, dtype=Y.dtype)
    M.rmatmul(Y, buffer[::2, 1 : d + 1])  # a block of a larger buffer, rows apart
    assert_close(buffer[::2, 1 : d + 1], expected, dimension=d, scale=scale)


@each_family
@quick
@given(d=sizes, seed=seeds)
def test_members_are_a_vector_space(family: Family, d: int, seed: int) -> None:
    M, N = member(family, d, seed), member(family, d, seed + 50)
    expected = 0.9 * M.dense() - 0.3 * N.dense()
    kept = N.dense().clone()
    assert M.combine_(0.9, N, -0.3) is M
    assert_close(M.dense(), expected, dimension=d, scale=size(expected))
    assert torch.equal(N.dense(), kept)
    assert_close(M.mean_diagonal(), M.dense().diagonal().mean(), dimension=d, scale=size(M.dense()))


@each_family
@pytest.mark.parametrize("d", [1, 2, 5, 9])
def test_stored_scalars_are_independent_and_each_is_seen(family: Family, d: int) -> None:
    """No scalar is stored twice or for nothing, and ``tensors()`` hands out the live ones."""
    E = entries(family.zeros(d, like=LIKE))
    assert E.shape == (d * d, family.scalars(d))
    assert torch.linalg.matrix_rank(E) == family.scalars(d)


@each_family
@pytest.mark.parametrize("d", [1, 4, 9])
def test_flops_grow_with_columns_and_dimension_and_never_exceed_dense(family: Family, d: int) -> None:
    M, larger = family.zeros(d, like=LIKE), family.zeros(d + 3, like=LIKE)
    costs = [M.flops(k) for k in (0, 1, 2, 5, 100)]
    assert costs == sorted(costs)
    assert costs[0] == 0.0
    assert costs[1] > 0
    assert larger.flops(5) >= M.flops(5)
    assert M.flops(5) <= 2.0 * d * d * 5


@each_family
@pytest.mark.parametrize("d", [1, 6])
def test_a_state_that_holds_a_member_is_saved_and_filled_again(family: Family, d: int) -> None:
    state, other = {"block": member(family, d, 0)}, {"block": family.zeros(d, like=LIKE)}
    tensors, plain = export(state)
    restore(other, {k: t.clone() for k, t in tensors.items()}, plain)
    assert torch.equal(other["block"].dense(), state["block"].dense())
    assert len(tensors) == len(state["block"].tensors())


# families that hold Gram matrices


@each_gram
@quick
@given(d=sizes, n=st.integers(1, 6), seed=seeds, keep=st.sampled_from([0.0, 0.5, 0.95]))
def test_an_average_is_the_projection_of_the_dense_one(
    family: Family, d: int, n: int, seed: int, keep: float
) -> None:
    assert isinstance(family, Gram)
    M, X = gram(family, d, seed), normal(n, d, seed=seed + 1)
    expected = keep * M.dense() + family.project(0.3 * X.mT @ X).dense()
    kept = X.clone()
    family.average_(M, keep, X, 0.3, Lapack())
    assert_close(M.dense(), expected, dimension=n + d, scale=size(expected))
    assert torch.equal(X, kept)


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
@quick
@given(d=sizes, seed=seeds)
def test_eigenvalues_and_vectors_make_the_matrix_again(family: Family, d: int, seed: int) -> None:
    assert isinstance(family, Gram)
    M = gram(family, d, seed, rows=max(1, d - 1))  # singular where d > 1
    before = M.dense().clone()
    values, vectors = family.eigh(M, Lapack())
    assert bool((values >= 0).all())
    Q = torch.eye(d).double() if vectors is None else vectors
    assert (vectors is None) == (not family.rotates)
    assert_close(Q.mT @ Q, torch.eye(d).double())
    assert_close(Q * values @ Q.mT, before, dimension=d, scale=size(before))
    assert torch.equal(M.dense(), before)


# families closed under products


@each_group
@quick
@given(d=sizes, n=st.integers(1, 6), seed=seeds)
def test_a_congruence_is_the_projection_of_the_dense_one(family: Family, d: int, n: int, seed: int) -> None:
    assert isinstance(family, Group)
    K, X = member(family, d, seed), normal(n, d, seed=seed + 50)
    before, kept = K.dense().clone(), X.clone()
    S = X @ before
    expected = family.project(S.mT @ S).dense()
    assert_close(family.congruence(K, X).dense(), expected, dimension=n + d, scale=size(expected, S.mT @ S))
    assert torch.equal(K.dense(), before)
    assert torch.equal(X, kept)


@each_group
@quick
@given(d=sizes, seed=seeds)
def test_products_of_members_are_members(family: Family, d: int, seed: int) -> None:
    """After several products, none symmetric: the product lies in the span of the family's pattern."""
    product = torch.eye(d).double()
    for k in range(3):
        product = product @ member(family, d, seed + 10 * k).dense()
    E = entries(family.zeros(d, like=LIKE))
    fit = torch.linalg.lstsq(E, product.reshape(-1, 1), driver="gelsd").solution
    assert_close((E @ fit).view(d, d), product, dimension=d**3, scale=size(product))


def test_the_reference_pair_has_both_capabilities() -> None:
    from curvlab.structures.dense import Dense
    from curvlab.structures.diagonal import Diagonal

    for family in (Dense(), Diagonal()):
        assert family in GRAMS
        assert family in GROUPS
