"""Families that store every number of a matrix: their updates are the dense ones."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvlab.protocols.structure import Family, Group
from curvlab.testing.asserts import assert_close
from curvlab.testing.members import LIKE, size, updated
from curvlab.testing.problems import normal
from tests.structures.members import GROUPS


def full(d: int) -> list[Family]:
    """The families that store every number of a matrix of dimension d."""
    return [f for f in GROUPS if f.scalars(d) == d * d]


@settings(max_examples=12, deadline=None, derandomize=True)
@given(d=st.integers(1, 9), seed=st.integers(0, 999))
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
