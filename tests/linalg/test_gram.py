"""Gram matrices of which half is computed, against the whole product."""

from __future__ import annotations

import pytest
import torch

from curvlab.linalg.flops import flops
from curvlab.linalg.gram import WIDE, gram, gram_, weighted_gram_
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal


@pytest.mark.parametrize("d", [1, 7, WIDE - 1, WIDE, WIDE + 77])
def test_a_weighted_gram_is_the_product_and_exactly_symmetric(d: int) -> None:
    X, Y = normal(5, d, seed=1), normal(5, 9, seed=2)
    N, M = Y @ Y.mT, gram(normal(6, d, seed=3))
    found = weighted_gram_(M.clone(), 0.9, X, N, 0.3)
    assert_close(found, 0.9 * M + 0.3 * X.mT @ N @ X, dimension=d, condition=10)
    assert torch.equal(found, found.mT)
    garbage = torch.full((d, d), torch.nan, dtype=DTYPE)
    assert_close(weighted_gram_(garbage, 0.0, X, N, 1.0), X.mT @ N @ X, dimension=d, condition=10)


def test_with_the_identity_for_weights_it_is_the_gram_and_costs_little_more() -> None:
    X, M = normal(20, 600, seed=4), gram(normal(6, 600, seed=5))
    expected = gram_(M.clone(), 0.5, X, 2.0)
    assert_close(weighted_gram_(M.clone(), 0.5, X, torch.eye(20, dtype=DTYPE), 2.0), expected, dimension=600)
    plain = flops(lambda: gram_(M, 0.5, X, 2.0))
    whole = 2 * 20 * 600**2
    assert flops(lambda: weighted_gram_(M, 0.5, X, torch.eye(20, dtype=DTYPE), 2.0)) < plain + 0.05 * whole
