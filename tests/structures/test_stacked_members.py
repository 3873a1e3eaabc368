"""Stacked members: every operation on several matrices side by side is the loop over them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from curvlab.protocols.structure import Family, Group, Structure
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from tests.structures.members import (
    LIKE,
    each_family,
    each_group,
    each_linear,
    member,
    quick,
    seeds,
    size,
    sizes,
    symmetric,
)

batches = st.sampled_from([(1,), (3,), (2, 3)])


def places(batch: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """The index of every stacked matrix."""
    return product(*(range(k) for k in batch))


def at(M: Structure, place: tuple[int, ...]) -> Structure:
    """One of the stacked matrices."""
    for k in place:
        M = M.part(k)
    return M


def dense(thing: Any) -> Tensor:
    """A member's matrix; a tensor as it is."""
    found: Tensor = thing if isinstance(thing, Tensor) else thing.dense()
    return found


def assert_stacked(
    whole: Any, batch: tuple[int, ...], alone: Callable[[tuple[int, ...]], Any], scale: float = 1.0
) -> None:
    """``whole`` holds ``alone(place)`` at every place."""
    found = dense(whole)
    assert tuple(found.shape[: len(batch)]) == batch
    for place in places(batch):
        assert_close(found[place], dense(alone(place)), dimension=100, scale=scale, what=f"at {place}")


@each_family
@quick
@given(d=sizes, seed=seeds, batch=batches)
def test_projections_zeros_and_eye_stack(family: Family, d: int, seed: int, batch: tuple[int, ...]) -> None:
    S = symmetric(d, seed, *batch)
    for M in (family.project(S), family.zeros(d, like=LIKE, batch=batch)):
        assert M.batch == batch
        assert M.d == d
        assert all(t.is_contiguous() for t in M.tensors().values())
    assert_stacked(family.project(S), batch, lambda p: family.project(S[p]), size(S))
    assert_stacked(family.zeros(d, like=LIKE, batch=batch), batch, lambda p: torch.zeros(d, d).double())
    assert_stacked(family.eye(d, like=LIKE, batch=batch), batch, lambda p: torch.eye(d).double())


@each_family
@quick
@given(d=sizes, k=st.integers(1, 4), seed=seeds, batch=batches)
def test_products_stack(family: Family, d: int, k: int, seed: int, batch: tuple[int, ...]) -> None:
    M, X = member(family, d, seed, *batch), normal(*batch, k, d, seed=seed + 50)
    scale = size(M.dense()) * size(X) * d
    assert_stacked(M @ X.mT, batch, lambda p: at(M, p) @ X[p].mT, scale)
    assert_stacked(M.rmatmul(X), batch, lambda p: at(M, p).rmatmul(X[p]), scale)
    out = torch.full_like(X, torch.nan)
    assert M.rmatmul(X, out) is out
    assert_stacked(out, batch, lambda p: at(M, p).rmatmul(X[p]), scale)


@each_family
@quick
@given(d=sizes, seed=seeds, batch=batches)
def test_numbers_of_a_matrix_and_shifts_stack(
    family: Family, d: int, seed: int, batch: tuple[int, ...]
) -> None:
    M = member(family, d, seed, *batch)
    before = M.dense().clone()
    assert_stacked(M, batch, lambda p: at(M, p))
    assert_stacked(M.mean_diagonal(), batch, lambda p: at(M, p).mean_diagonal(), size(before))
    assert_stacked(M.norm(), batch, lambda p: at(M, p).norm(), size(before) * d)
    M.shift_(0.5)
    assert_stacked(M, batch, lambda p: before[p] + 0.5 * torch.eye(d), size(before))


@each_linear
@quick
@given(d=sizes, seed=seeds, batch=batches, boxed=st.booleans())
def test_each_stacked_matrix_has_coefficients_of_its_own(
    family: Family, d: int, seed: int, batch: tuple[int, ...], boxed: bool
) -> None:
    M, N = member(family, d, seed, *batch), member(family, d, seed + 50, *batch)
    A, B = M.dense().clone(), N.dense().clone()
    a, b = normal(*batch, seed=seed + 1), normal(*batch, seed=seed + 2)
    M.combine_(a if boxed else 1.0, N, b)
    assert_stacked(M, batch, lambda p: (a[p] if boxed else 1.0) * A[p] + b[p] * B[p], size(A, B) * 10)


@each_group
@quick
@given(d=sizes, n=st.sampled_from([1, 4, 40]), seed=seeds, batch=batches)
def test_what_a_group_computes_stacks(
    family: Family, d: int, n: int, seed: int, batch: tuple[int, ...]
) -> None:
    assert isinstance(family, Group)
    K, M = member(family, d, seed, *batch), member(family, d, seed + 50, *batch)
    X = normal(*batch, n, d, seed=seed + 70)
    scale = size(K.dense(), M.dense()) ** 2 * d
    assert_stacked(family.product(K, M), batch, lambda p: family.product(at(K, p), at(M, p)), scale)
    assert_stacked(family.square(K), batch, lambda p: family.square(at(K, p)), scale)
    far = scale * size(X) ** 2 * n * d
    assert_stacked(family.congruence(K, X), batch, lambda p: family.congruence(at(K, p), X[p]), far)
    assert_stacked(family.member(K.dense()), batch, lambda p: at(K, p), scale)
    G, far = family.gramian(K), scale * size(X) * d
    assert_stacked(G @ X.mT, batch, lambda p: family.gramian(at(K, p)) @ X[p].mT, far)
    assert_stacked(G.rmatmul(X), batch, lambda p: family.gramian(at(K, p)).rmatmul(X[p]), far)
    for found in (family.product(K, M), family.square(K), family.congruence(K, X)):
        assert found.batch == batch
        assert all(t.is_contiguous() for t in found.tensors().values())


@each_family
@pytest.mark.parametrize("d", [1, 5])
def test_parts_are_views(family: Family, d: int) -> None:
    M = member(family, d, 0, 3)
    before = M.dense().clone()
    M.part(1).shift_(2.0)
    assert_close(M.dense()[1], before[1] + 2.0 * torch.eye(d).double(), scale=size(before))
    assert torch.equal(M.dense()[::2], before[::2])
