"""What every structure owes that is closed under products."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curvlab.protocols.structure import Family, Group, Structure
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab.testing.reference import entries
from tests.structures.members import GROUPS, LIKE, each_group, member, quick, seeds, size, sizes

#: as few rows as columns, or many more: families may take another way then
rows = st.sampled_from([1, 2, 6, 40])


@each_group
@quick
@given(d=sizes, seed=seeds)
def test_a_member_is_made_of_its_dense_matrix(family: Family, d: int, seed: int) -> None:
    assert isinstance(family, Group)
    M = member(family, d, seed)
    A = M.dense().clone()
    copy = family.member(A)
    assert copy.tensors().keys() == M.tensors().keys()
    for name, t in copy.tensors().items():
        assert_close(t, M.tensors()[name], dimension=d, scale=size(A))
        t.zero_()
    assert torch.equal(A, M.dense())


@each_group
@quick
@given(d=sizes, n=rows, seed=seeds)
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
def test_a_square_is_the_projection_of_the_dense_one(family: Family, d: int, seed: int) -> None:
    assert isinstance(family, Group)
    K = member(family, d, seed)
    A = K.dense().clone()
    assert_close(
        family.square(K).dense(), family.project(A.mT @ A).dense(), dimension=d, scale=size(A) ** 2 * d
    )
    assert torch.equal(K.dense(), A)


@each_group
@quick
@given(d=sizes, seed=seeds)
def test_a_product_is_the_dense_one_and_a_member(family: Family, d: int, seed: int) -> None:
    """After several products, none symmetric: each lies in the span of the family's pattern."""
    assert isinstance(family, Group)
    P, dense = member(family, d, seed), member(family, d, seed).dense()
    for k in range(3):
        M = member(family, d, seed + 10 * k)
        kept = M.dense().clone()
        P, dense = family.product(P, M), dense @ kept
        assert_close(P.dense(), dense, dimension=d**3, scale=size(dense))
        assert P.family == family.at(d)
        assert torch.equal(M.dense(), kept)
    E = entries(family.zeros(d, like=LIKE))
    fit = torch.linalg.lstsq(E, dense.reshape(-1, 1), driver="gelsd").solution
    assert_close((E @ fit).view(d, d), dense, dimension=d**3, scale=size(dense))


@each_group
@quick
@given(d=sizes, k=st.integers(1, 4), seed=seeds)
def test_a_gramian_multiplies_by_k_and_its_transpose(family: Family, d: int, k: int, seed: int) -> None:
    assert isinstance(family, Group)
    K, X = member(family, d, seed), normal(d, k, seed=seed + 50)
    A = K.dense().clone()
    G, dense = family.gramian(K), A @ A.mT
    scale = size(A) ** 2 * size(X) * d**2
    assert_close(G @ X, dense @ X, dimension=d, scale=scale)
    assert_close(G.rmatmul(X.mT), X.mT @ dense, dimension=d, scale=scale)
    out = torch.full((k, d), torch.nan).double()
    assert G.rmatmul(X.mT, out) is out
    assert_close(out, X.mT @ dense, dimension=d, scale=scale)
    assert torch.equal(K.dense(), A)
    costs = [G.flops(columns) for columns in (0, 1, 2, 100)]
    assert costs == sorted(costs)
    assert costs[0] == 0.0 < costs[1]


def updated(family: Group, K: Structure, seed: int, beta: float) -> Structure:
    """K (I − β m) with m = ½ (Π(Kᵀ XᵀX K) + Π(Kᵀ K) − I): what inverse-free methods do to a member."""
    m = family.congruence(K, normal(5, K.d, seed=seed) / 5**0.5)
    m = m.combine_(0.5, family.square(K), 0.5).shift_(-0.5)
    return K.combine_(1.0, family.product(K, m), -beta)


def updated_densely(family: Family, K: Tensor, seed: int, beta: float) -> Tensor:
    """The same of a dense matrix."""
    S = normal(5, len(K), seed=seed) / 5**0.5 @ K
    m = 0.5 * (family.project(S.mT @ S).dense() + family.project(K.mT @ K).dense() - torch.eye(len(K)))
    return K - beta * K @ m


@each_group
@quick
@given(d=sizes, seed=seeds)
def test_inverse_free_updates_follow_the_dense_ones(family: Family, d: int, seed: int) -> None:
    """Over updates that leave no block symmetric."""
    assert isinstance(family, Group)
    K = family.eye(d, like=LIKE)
    dense = K.dense().clone()
    for k in range(6):
        K = updated(family, K, seed + k, 0.4)
        dense = updated_densely(family, dense, seed + k, 0.4)
    assert_close(K.dense(), dense, dimension=d**2, condition=100.0, scale=size(dense))


def full(d: int) -> list[Family]:
    """The families that store every number of a matrix of dimension d."""
    return [f for f in GROUPS if f.scalars(d) == d * d]


@quick
@given(d=sizes, seed=seeds)
def test_a_family_large_enough_for_the_matrix_is_dense(d: int, seed: int) -> None:
    """Blocks of size ≥ d and the like: the projection does nothing, and updates are dense ones."""
    for family in full(d):
        assert isinstance(family, Group)
        K, S = family.eye(d, like=LIKE), normal(d, d, seed=seed)
        assert torch.equal(family.project(S + S.mT).dense(), S + S.mT)
        dense = torch.eye(d).double()
        for k in range(6):
            K = updated(family, K, seed + k, 0.4)
            X = normal(5, d, seed=seed + k) / 5**0.5 @ dense
            dense = dense - 0.2 * dense @ (X.mT @ X + dense.mT @ dense - torch.eye(d))
        assert_close(K.dense(), dense, dimension=d**2, condition=100.0, scale=size(dense))


def test_settings_make_families_large_enough() -> None:
    """So that the law above speaks of more than dense matrices."""
    names = {type(f).__name__ for f in full(4)}
    assert {"Dense", "BlockDiagonal", "Auto"} <= names
