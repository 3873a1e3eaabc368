"""A member that is laid out for several products in a row is the same matrix, in the same memory."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from curvlab.protocols.structure import Family, Group, Structure
from curvlab.testing.members import member
from curvlab.testing.problems import normal
from tests.structures.members import GROUPS

Place = tuple[int, ...]


def at(M: Structure, place: Place) -> Structure:
    """One of the stacked matrices."""
    for k in place:
        M = M.part(k)
    return M


@pytest.mark.filterwarnings("ignore::curvlab.protocols.structure.NaiveFallback")
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("d", [1, 2, 7])
@pytest.mark.parametrize("family", GROUPS, ids=str)
def test_laid_out_it_is_the_same_matrix(family: Family, d: int, batch: Place) -> None:
    assert isinstance(family, Group)
    K, X = member(family, d, 0, *batch), normal(*batch, 3, d, seed=70)
    laid_out = K.laid_out()
    assert torch.equal(laid_out.dense(), K.dense())
    assert torch.equal(laid_out.rmatmul(X), K.rmatmul(X))
    assert torch.equal(family.congruence(laid_out, X).dense(), family.congruence(K, X).dense())
    for place in product(*(range(k) for k in batch)):
        assert torch.equal(at(laid_out, place).dense(), at(K, place).dense())
    before = K.dense().clone()
    laid_out.scale_(2.0)
    assert torch.equal(K.dense(), 2.0 * before), "what changes one changes the other"
