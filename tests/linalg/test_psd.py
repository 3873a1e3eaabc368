"""Eigenvalues of matrices that are positive semidefinite by construction."""

from __future__ import annotations

import pytest
import torch

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.gram import gram_
from curvlab.linalg.psd import nonnegative


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [1, 4, 3000])
def test_what_rounding_explains_is_zero_and_the_rest_is_as_it_was(dtype: torch.dtype, d: int) -> None:
    allowed = (d + 1000) * torch.finfo(dtype).eps * 5.0
    values = (
        torch.tensor([-0.9 * allowed, 0.0, 1e-3, 5.0], dtype=dtype)[-d:].repeat(max(1, d // 4)).sort().values
    )
    expected = torch.where(values < 0, 0.0, values)
    assert torch.equal(nonnegative(values), expected)
    assert torch.equal(nonnegative(values.expand(3, -1)), expected.expand(3, -1))
    assert torch.equal(nonnegative(values.double(), dtype), expected.double())


def test_numbers_that_nearly_underflow_are_zero() -> None:
    values = torch.tensor([-1e-44, 0.0, 1e-44])
    assert torch.equal(nonnegative(values), values.clamp(min=0.0))


def test_what_it_does_not_explain_is_named_with_the_largest() -> None:
    """In a batch, of the matrix at fault; in the dtype in which the matrix was computed."""
    values = torch.tensor([[0.0, 1.0, 2e6], [-6e-3, 0.5, 2.0]], dtype=torch.float64)
    with pytest.raises(NotPositiveDefinite, match=r"dimension 3 .* -0.006, its largest 2; .*float64"):
        nonnegative(values)
    with pytest.raises(NotPositiveDefinite, match="-0.006"):
        nonnegative(values, torch.float32)
    assert float(nonnegative(values[1] * torch.tensor([1.0, 1.0, 1e4]).double(), torch.float32)[0]) == 0.0
    with pytest.raises(NotPositiveDefinite, match="largest -1"):
        nonnegative(-torch.ones(2))


@pytest.mark.parametrize(("d", "decay", "steps"), [(3, 0.999, 1500), (64, 0.95, 200), (300, 0.0, 1)])
def test_averages_of_singular_grams_in_float32_stay_within_it(d: int, decay: float, steps: int) -> None:
    """Rows in half of the dimensions, of very different sizes."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(50, d // 2, generator=generator) @ torch.randn(d // 2, d, generator=generator) * 30
    X *= torch.logspace(0, -3, d)
    M = torch.zeros(d, d)
    for _ in range(steps):
        gram_(M, decay, X, 1 - decay)
    values = torch.linalg.eigvalsh(M.double())
    assert float(values[0]) < 0
    assert float(nonnegative(values, torch.float32)[0]) == 0.0
