"""Low rank plus identity: nearest, of the same trace, and never away from orthonormal."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvlab.errors import CapabilityError, ConfigError, NotPositiveDefinite
from curvlab.precision.full import Full
from curvlab.protocols.structure import as_group
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab.testing.reference import Lapack
from curvlab_structures.low_rank import LowRank, LowRankMatrix

quick = settings(max_examples=25, deadline=None, derandomize=True)


def observed(family: LowRank, X: Tensor, times: int, keep: float = 0.9) -> LowRankMatrix:
    """An average over ``times`` looks at rows that change from one to the next."""
    M, backend = family.zeros(X.shape[1], like=X), Full(str(X.dtype).removeprefix("torch."))  # type: ignore[arg-type]
    for k in range(times):
        family.average_(M, keep, X.roll(k, 0)[: len(X) // 2], 1 - keep, backend)
    return M


@quick
@given(d=st.integers(1, 12), rank=st.integers(1, 14), seed=st.integers(0, 999))
def test_a_projection_leaves_the_spread_of_the_small_eigenvalues_and_nothing_else(
    d: int, rank: int, seed: int
) -> None:
    """‖Π(S) − S‖² = Σ (λ − mean λ)² over the eigenvalues that are not kept; the trace is kept."""
    S = normal(d, d, seed=seed)
    S = S + S.mT
    rest = torch.linalg.eigvalsh(S)[: max(d - rank, 1)]
    M = LowRank(rank).project(S)
    left = (rest - rest.mean()).norm()
    assert_close((M.dense() - S).norm(), left, dimension=d**2, scale=float(S.norm()))
    assert_close(M.dense().trace(), S.trace(), dimension=d**2, scale=float(S.norm()))
    assert bool((M.values >= 0).all())


@pytest.mark.parametrize("n", [3, 40])
def test_what_is_of_low_rank_is_averaged_exactly(n: int) -> None:
    """Rows of one space of dimension 3, a few or more than there are dimensions, over many observations."""
    d, keep = 20, 0.9
    family, space = LowRank(3), normal(3, d, seed=0)
    M, exact = family.zeros(d, like=space).shift_(0.5), 0.5 * torch.eye(d).double()
    for k in range(30):
        X = normal(n, 3, seed=k + 1) @ space
        family.average_(M, keep, X, 0.1, Lapack())
        exact = keep * exact + 0.1 * X.mT @ X
    assert_close(M.dense(), exact, dimension=30 * d)


@pytest.mark.parametrize("n", [4, 60])
@pytest.mark.parametrize("spread", [1.0, 1e4, 1e8])
def test_eigenvectors_stay_orthonormal_whatever_the_spread_of_the_spectrum(n: int, spread: float) -> None:
    """In float32, where vectors of small eigenvalues would otherwise lean on those of large ones."""
    d, k = 24, 10
    scales = torch.logspace(0, -0.5, d, base=spread)
    M = observed(LowRank(k), normal(n, d, seed=0).float() * scales, 20)
    assert_close(M.vectors.mT @ M.vectors, torch.eye(k))


def test_an_average_keeps_the_trace() -> None:
    d = 15
    M, X = LowRank(2).zeros(d, like=torch.zeros(1).double()), normal(40, d, seed=0)
    trace = torch.zeros(()).double()
    for k in range(20):
        LowRank(2).average_(M, 0.9, X[k : k + 6], 0.1, Lapack())
        trace = 0.9 * trace + 0.1 * X[k : k + 6].square().sum()
        assert_close(M.mean_diagonal() * d, trace, dimension=d * (k + 1))


def test_an_inverse_is_right_at_a_large_condition_number() -> None:
    """In float32 at damping 1e-3 of the largest eigenvalue, against float64."""
    d = 40
    M = observed(LowRank(6), normal(64, d, seed=0).float(), 10)
    shift = 1e-3 * float(M.norm())
    inverse = LowRank(6).inverse(M, shift, Full())
    X = normal(d, 3, seed=1)
    exact = torch.linalg.solve(M.dense().double() + shift * torch.eye(d), X)
    assert_close(inverse @ X.float(), exact, dimension=d, condition=1e3)
    values = inverse.scale + inverse.values
    assert bool((values > 0).all())


def test_an_inverse_does_not_follow_what_it_is_of() -> None:
    M = observed(LowRank(2), normal(8, 6, seed=0), 3)
    inverse = LowRank(2).inverse(M, 0.1, Lapack())
    before = inverse.dense().clone()
    LowRank(2).average_(M, 0.5, normal(4, 6, seed=1), 0.5, Lapack())
    assert torch.equal(inverse.dense(), before)


@pytest.mark.parametrize("shift", [-0.5, -2.5])
def test_an_eigenvalue_below_zero_is_found_where_it_is(shift: float) -> None:
    """Of the identity's part, and of all."""
    M = LowRank(1).project(torch.diag(torch.tensor([2.0, 0.25, 0.25])).double())
    with pytest.raises(NotPositiveDefinite, match="dimension 3"):
        LowRank(1).inverse(M, shift, Lapack())
    assert_close(LowRank(1).inverse(M, 0.0, Lapack()).dense(), torch.diag(torch.tensor([0.5, 4, 4])).double())


def test_members_are_not_added() -> None:
    M = LowRank(2).eye(5, like=torch.zeros(1))
    with pytest.raises(CapabilityError, match="members of low-rank cannot be added.*"):
        M.combine_(1.0, M, 1.0)
    with pytest.raises(CapabilityError, match="LowRank is not one"):
        as_group(LowRank(2), "singd")


def test_a_rank_below_one_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match="rank = 0 must be at least 1"):
        LowRank(0)
