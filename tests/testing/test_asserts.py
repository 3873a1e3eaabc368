"""Reports of closeness: they pass on rounding, fail on errors, and say what is wrong."""

from __future__ import annotations

import pytest
import torch

from curvlab.linalg.compose import BlockDiagonal, Shifted
from curvlab.linalg.kronecker import KroneckerEigen
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.testing.asserts import assert_close, assert_mean, assert_same, assert_self_adjoint, tolerance
from curvlab.testing.problems import normal


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("k", [1, 30, 1000])
def test_products_in_another_order_are_close(dtype: torch.dtype, k: int) -> None:
    A, B = normal(5, k, seed=k).to(dtype), normal(k, 7, seed=k + 1).to(dtype)
    order = torch.randperm(k, generator=torch.Generator().manual_seed(0))
    assert_close(A[:, order] @ B[order], A @ B, dimension=k)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_error_above_the_tolerance_is_caught(dtype: torch.dtype) -> None:
    expected = normal(4, 5, seed=0).to(dtype)
    wrong = expected.clone()
    wrong[2, 3] += 2 * tolerance(dtype, 5) * float(expected.abs().max())
    with pytest.raises(AssertionError):
        assert_close(wrong, expected)
    right = expected.clone()
    right[2, 3] += 0.25 * tolerance(dtype, 5) * float(expected.abs().max())
    assert_close(right, expected)


def test_a_report_names_the_worst_entry_both_values_and_their_ratio() -> None:
    expected = torch.full((2, 3), 4.0, dtype=torch.float64)
    actual = expected.clone()
    actual[1, 2], actual[0, 0] = 2.0, 3.9
    with pytest.raises(AssertionError) as caught:
        assert_close(actual, expected, what="block fc1")
    text = str(caught.value)
    assert "block fc1: 2 of 6 entries differ; the worst is [1, 2]: 2, expected 4, ratio 0.5" in text
    assert "float64, sums of 3" in text


def test_a_nan_is_wrong_and_is_the_worst() -> None:
    actual = torch.tensor([1.0, float("nan"), 9.0])
    with pytest.raises(AssertionError, match=r"worst is \[1\]: nan"):
        assert_close(actual, torch.ones(3))


def test_other_shapes_never_match() -> None:
    with pytest.raises(AssertionError, match=r"shape \(3,\), expected \(3, 1\)"):
        assert_close(torch.ones(3), torch.ones(3, 1))


def test_the_coarser_dtype_decides() -> None:
    fine = normal(6, seed=0)
    assert_close(fine.float(), fine)
    with pytest.raises(AssertionError, match="float64"):
        assert_close(fine.float().double(), fine)


def test_a_zero_is_expected_exactly_unless_a_scale_is_given() -> None:
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([1e-300], dtype=torch.float64), torch.zeros(1).double())
    assert_close(torch.tensor([1e-17], dtype=torch.float64), torch.zeros(1).double(), scale=1.0)


def test_vectors_are_compared_block_by_block() -> None:
    layout = BlockLayout({"a": (2, 3), "b": (4,)})
    expected = BlockVector(layout, normal(10, seed=0))
    assert_same(expected.clone(), expected)
    wrong = expected.clone()
    wrong["b"][1] = 7.0
    with pytest.raises(AssertionError, match=r"block 'b': 1 of 4 entries differ; the worst is \[1\]: 7"):
        assert_same(wrong, expected)


class Sheared(LinearOperator[BlockVector]):
    """Not self-adjoint: each entry takes its neighbor along."""

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return BlockVector(v.layout, v.flat + v.flat.roll(1))


def test_self_adjointness_and_positivity_are_told_from_their_absence() -> None:
    layout = BlockLayout({"a": (3, 4)})
    like, D = layout.zeros(like=normal(1, seed=0)), normal(3, 4, seed=1)
    positive = BlockDiagonal({"a": KroneckerEigen(None, None, D.square())})
    assert_self_adjoint(positive, like, psd=True)
    negative = BlockDiagonal({"a": KroneckerEigen(None, None, -D.square())})
    assert_self_adjoint(negative, like, psd=False)
    with pytest.raises(AssertionError, match="not PSD"):
        assert_self_adjoint(Shifted(negative, 1e-3), like, psd=True)
    with pytest.raises(AssertionError, match="⟨u, Av⟩ against ⟨Au, v⟩"):
        assert_self_adjoint(Sheared(), like, psd=False)


def test_means_are_judged_at_the_stated_rate_of_false_alarms() -> None:
    """At 2 % over 3 entries, 1000 true claims fail 20 times; more than 40 has probability below 1e-4."""
    alarms = 0
    for seed in range(1000):
        try:
            assert_mean(normal(400, 3, seed=seed), torch.zeros(3).double(), false_alarm=0.02)
        except AssertionError:
            alarms += 1
    assert 2 <= alarms <= 40, alarms


def test_a_wrong_mean_is_caught() -> None:
    samples = normal(40_000, 3, seed=0)
    with pytest.raises(AssertionError, match=r"worst is \[1\].*\n.*false alarm 1e-06"):
        assert_mean(samples, torch.tensor([0.0, 0.04, 0.0], dtype=torch.float64), false_alarm=1e-6)


def test_what_does_not_vary_must_be_exact() -> None:
    constant = torch.ones(50, 2).double()
    assert_mean(constant, torch.ones(2).double(), false_alarm=1e-3)
    with pytest.raises(AssertionError):
        assert_mean(constant, torch.tensor([1.0, 1.0 + 1e-9], dtype=torch.float64), false_alarm=1e-3)
