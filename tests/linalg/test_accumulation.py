"""``M ← keep · M + weight · LᵀR``, in whatever memory the product is formed."""

from __future__ import annotations

import pytest
import torch

from curvlab.linalg.accumulation import ENTRIES, ROWS, _aside, accumulate_
from curvlab.testing.asserts import assert_close

#: rows of factors, and the matrix's shape; the first is the kind that is formed aside
SHAPES = [(ROWS, 512, 785), (ROWS, 512, 784), (ROWS - 1, 512, 785), (ROWS, 10, 513), (1, 3, 5)]


@pytest.mark.parametrize("weight", [1.0, -0.3])
@pytest.mark.parametrize("keep", [0.0, 0.9, 1.0])
@pytest.mark.parametrize(("r", "o", "i"), SHAPES)
def test_it_is_one_product_added(r: int, o: int, i: int, keep: float, weight: float) -> None:
    torch.manual_seed(0)
    M, left, right = torch.randn(o, i), torch.randn(r, o), torch.randn(r, i)
    expected = keep * M + weight * (left.mT @ right)
    found = accumulate_(M, keep, left, right, weight)
    assert found.data_ptr() == M.data_ptr()
    assert_close(M, expected, dimension=r, condition=float(r), what=f"{r} rows")


def test_only_large_products_in_odd_rows_of_float32_are_formed_aside() -> None:
    aside = [_aside(torch.empty(o, i), torch.empty(r, o)) for r, o, i in SHAPES]
    assert aside == [True, False, False, False, False]
    assert ENTRIES <= 512 * 785
    assert not _aside(torch.empty(512, 785, dtype=torch.float64), torch.empty(ROWS, 512))
    assert _aside(torch.empty(512, 800)[:, :785], torch.empty(ROWS, 512)) is False
