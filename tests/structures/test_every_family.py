"""What every structure owes, whatever its pattern."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from curvlab.engine.state import export, nbytes, restore
from curvlab.protocols.structure import Family
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab.testing.reference import entries, nearest_member
from tests.structures.members import (
    GRAMS,
    GROUPS,
    LIKE,
    each_family,
    each_linear,
    each_nonlinear,
    member,
    quick,
    seeds,
    size,
    sizes,
    symmetric,
)

# projections


@each_linear
@quick
@given(d=sizes, seed=seeds)
def test_a_projection_has_the_nearest_symmetric_part(family: Family, d: int, seed: int) -> None:
    """The one rule of all structures: Π(S) = argmin ‖½ (Z + Zᵀ) − S‖ over members Z."""
    S = symmetric(d, seed)
    assert_close(family.project(S).dense(), nearest_member(family, S), dimension=d * d, scale=size(S))


@each_linear
@quick
@given(d=sizes, seed=seeds)
def test_projections_are_linear(family: Family, d: int, seed: int) -> None:
    S, T = symmetric(d, seed), symmetric(d, seed + 1)
    both = family.project(2.0 * S - 3.0 * T).dense()
    expected = 2.0 * family.project(S).dense() - 3.0 * family.project(T).dense()
    assert_close(both, expected, dimension=d, scale=5 * size(S, T))


@each_nonlinear
@quick
@given(d=sizes, seed=seeds, far=st.sampled_from([1e-3, 0.1, 3.0]))
def test_no_member_is_nearer_than_a_projection(family: Family, d: int, seed: int, far: float) -> None:
    """The same rule where members are no vector space: against members near to and far from it."""
    S = symmetric(d, seed)
    nearest = float((family.project(S).dense() - S).norm())
    for k in range(4):
        Z = family.project(S + far * symmetric(d, seed + 1 + k))
        Z.shift_(far * (k - 1))
        assert float((Z.dense() - S).norm()) >= nearest - 1e-13 * size(S) * d


@each_nonlinear
@quick
@given(d=sizes, seed=seeds)
def test_a_member_is_its_own_projection(family: Family, d: int, seed: int) -> None:
    M = member(family, d, seed).dense()
    assert_close(family.project(M).dense(), M, dimension=d * d, scale=size(M))


@each_family
@pytest.mark.parametrize("d", [1, 3, 8])
def test_projections_do_not_share_memory_with_what_is_projected(family: Family, d: int) -> None:
    S = symmetric(d, 0)
    kept = S.clone()
    for t in family.project(S).tensors().values():
        t.zero_()
    assert torch.equal(S, kept)


# what is stored


@each_family
@pytest.mark.parametrize("d", [1, 2, 3, 4, 7, 30])
def test_scalars_are_those_that_are_stored(family: Family, d: int) -> None:
    M = family.zeros(d, like=LIKE)
    assert sum(t.numel() for t in M.tensors().values()) == family.scalars(d)
    assert all(t.dtype == LIKE.dtype for t in M.tensors().values())
    assert all(t.is_contiguous() for t in M.tensors().values())
    assert M.d == d
    assert M.family == family.at(d)
    assert M.family in family.options()
    assert nbytes(M) == family.scalars(d) * LIKE.element_size()


@each_family
@pytest.mark.parametrize("d", [1, 3, 8])
def test_zeros_and_eye_are_zero_and_the_identity(family: Family, d: int) -> None:
    assert torch.equal(family.zeros(d, like=LIKE).dense(), torch.zeros(d, d).double())
    assert torch.equal(family.eye(d, like=LIKE).dense(), torch.eye(d).double())
    single = family.eye(d, like=torch.zeros(1))
    assert {t.dtype for t in single.tensors().values()} == {torch.float32}


@each_linear
@pytest.mark.parametrize("d", [1, 2, 5, 9])
def test_stored_scalars_are_independent_and_each_is_seen(family: Family, d: int) -> None:
    """No scalar is stored twice or for nothing, and ``tensors()`` hands out the live ones."""
    E = entries(family.zeros(d, like=LIKE))
    assert E.shape == (d * d, family.scalars(d))
    assert torch.linalg.matrix_rank(E) == family.scalars(d)


@each_family
@pytest.mark.parametrize("d", [1, 6])
def test_a_state_that_holds_a_member_is_saved_and_filled_again(family: Family, d: int) -> None:
    state, other = {"block": member(family, d, 0)}, {"block": family.zeros(d, like=LIKE)}
    tensors, plain = export(state)
    restore(other, {k: t.clone() for k, t in tensors.items()}, plain)
    assert torch.equal(other["block"].dense(), state["block"].dense())
    assert len(tensors) == len(state["block"].tensors())


# what a member does


@each_family
@quick
@given(d=sizes, k=st.integers(1, 4), seed=seeds)
def test_products_are_those_of_the_dense_matrix(family: Family, d: int, k: int, seed: int) -> None:
    M, X, Y = member(family, d, seed), normal(d, k, seed=seed + 50), normal(k, d, seed=seed + 51)
    scale, kept = size(M.dense()) * size(X, Y) * d, Y.clone()
    assert_close(M @ X, M.dense() @ X, dimension=d, scale=scale)
    assert_close(M @ Y.mT, M.dense() @ Y.mT, dimension=d, scale=scale)  # columns that lie apart
    expected = Y @ M.dense()
    assert_close(M.rmatmul(Y), expected, dimension=d, scale=scale)
    out = torch.full_like(Y, torch.nan)
    assert M.rmatmul(Y, out) is out
    assert_close(out, expected, dimension=d, scale=scale)
    buffer = torch.full((2 * k, d + 3), torch.nan, dtype=Y.dtype)
    M.rmatmul(Y, buffer[::2, 1 : d + 1])  # a block of a larger buffer, rows apart
    assert_close(buffer[::2, 1 : d + 1], expected, dimension=d, scale=scale)
    assert torch.equal(Y, kept)


@each_linear
@quick
@given(d=sizes, seed=seeds)
def test_members_are_a_vector_space(family: Family, d: int, seed: int) -> None:
    M, N = member(family, d, seed), member(family, d, seed + 50)
    expected = 0.9 * M.dense() - 0.3 * N.dense()
    kept = N.dense().clone()
    assert M.combine_(0.9, N, -0.3) is M
    assert_close(M.dense(), expected, dimension=d, scale=size(expected))
    assert torch.equal(N.dense(), kept)


@each_family
@quick
@given(d=sizes, seed=seeds, c=st.sampled_from([-0.5, 0.25, 3.0]))
def test_mean_diagonal_norm_and_shift_are_the_dense_matrixs(
    family: Family, d: int, seed: int, c: float
) -> None:
    M = member(family, d, seed)
    A = M.dense().clone()
    assert_close(M.mean_diagonal(), A.diagonal().mean(), dimension=d, scale=size(A))
    assert_close(M.norm(), A.norm(), dimension=d * d)
    assert M.shift_(c) is M
    assert_close(M.dense(), A + c * torch.eye(d).double(), scale=size(A))


@each_family
@pytest.mark.parametrize("d", [1, 4, 9])
def test_flops_grow_with_columns_and_dimension_and_do_not_exceed_dense(family: Family, d: int) -> None:
    """Where members are no vector space, a stored number may be used twice."""
    M, larger = family.zeros(d, like=LIKE), family.zeros(d + 3, like=LIKE)
    costs = [M.flops(k) for k in (0, 1, 2, 5, 100)]
    assert costs == sorted(costs)
    assert costs[0] == 0.0
    assert costs[1] > 0
    assert larger.flops(5) >= M.flops(5)
    bound = 2.0 * d * d if M.family.linear else 4.0 * family.scalars(d) + 2.0 * d
    assert M.flops(5) <= bound * 5


def test_the_reference_pair_has_both_capabilities() -> None:
    from curvlab.structures.dense import Dense
    from curvlab.structures.diagonal import Diagonal

    for family in (Dense(), Diagonal()):
        assert family in GRAMS
        assert family in GROUPS
