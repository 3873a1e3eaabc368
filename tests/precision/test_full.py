"""The one place where matrices are factorized: it is LAPACK's answer, or an error that says why not."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg import factorizations
from curvlab.linalg.factorizations import LEAF
from curvlab.precision.full import Full
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab.testing.reference import Lapack

SINGLE, DOUBLE = Full("float32"), Full("float64")


def spd(d: int, condition: float, seed: int = 0) -> Tensor:
    """Eigenvalues from 1 down to 1/condition, geometrically; exactly symmetric."""
    Q = torch.linalg.qr(normal(d, d, seed=seed)).Q
    values = condition ** -torch.linspace(0, 1, d, dtype=torch.float64)
    A = (Q * values) @ Q.mT
    return 0.5 * (A + A.mT)


def indefinite(d: int, seed: int = 0) -> Tensor:
    """Positive definite but for one direction, which is of every coordinate."""
    Q = torch.linalg.qr(normal(d, d, seed=seed)).Q
    values = torch.linspace(1, 2, d, dtype=torch.float64)
    values[d // 2] = -0.1
    A = (Q * values) @ Q.mT
    return 0.5 * (A + A.mT)


def indefinite_in_the_last_complement(d: int) -> Tensor:
    """Every leading minor is positive but the very last: only the innermost Schur complement knows."""
    A = spd(d, 10.0)
    a = A[:-1, -1]
    A[-1, -1] = a @ torch.linalg.solve(A[:-1, :-1], a) - 0.01
    return A


DIMENSIONS = [1, 2, 3, LEAF - 1, LEAF, LEAF + 1, 2 * LEAF, 2 * LEAF + 1, 200, 300]


@pytest.mark.parametrize("d", DIMENSIONS)
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e8])
def test_the_blocked_inverse_is_lapacks(d: int, condition: float) -> None:
    """Both err by ε · condition: compared with each other, and with a product that is the identity."""
    A = spd(d, condition)
    assert_close(DOUBLE.inverse(A), Lapack().inverse(A), dimension=d, condition=condition)
    assert_close(A @ DOUBLE.inverse(A), torch.eye(d).double(), dimension=d, condition=condition)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(d=st.integers(1, 300), log_condition=st.floats(0, 9), seed=st.integers(0, 999))
def test_the_blocked_inverse_is_its_slow_twin_for_any_matrix(d: int, log_condition: float, seed: int) -> None:
    A = spd(d, 10**log_condition, seed)
    fast, slow = factorizations._blocked_inverse(A), factorizations._lapack_inverse(A)
    assert_close(fast, slow, dimension=d, condition=10**log_condition)
    assert_close(fast, fast.mT, dimension=d, condition=10**log_condition)


@pytest.mark.parametrize("d", [LEAF + 1, 128, 257])
@pytest.mark.parametrize("share", [0.25, 0.5, 2.0], ids=lambda s: f"{s} d rows")
@pytest.mark.parametrize("damping", [1e-1, 1e-2, 1e-3, 1e-4])
def test_damped_factors_of_few_rows_are_inverted_as_well_as_lapack_can(
    d: int, share: float, damping: float
) -> None:
    """What a Kronecker factor is in its first steps.  Errors against float64, in float32.

    Schur complements alone would lose every digit here: leading blocks are as singular as the whole.
    """
    X = normal(int(share * d), d, seed=d).relu()
    A = X.mT @ X / len(X)
    A.diagonal().add_(damping * float(A.diagonal().mean()))
    A = A.float()
    truth = torch.linalg.inv(A.double())
    ours, lapacks = (
        float((found.double() - truth).norm() / truth.norm())
        for found in (SINGLE.inverse(A), factorizations._lapack_inverse(A))
    )
    assert ours <= 20 * lapacks + 1e-6


@pytest.mark.parametrize("d", [1, 5, LEAF + 1, 200])
@pytest.mark.parametrize("boxed", [True, False], ids=["tensor", "float"])
def test_a_shift_is_added_to_the_diagonal_of_what_is_inverted_and_the_argument_left_alone(
    d: int, boxed: bool
) -> None:
    A = spd(d, 1e6)
    kept = A.clone()
    shift = torch.tensor(0.01, dtype=torch.float64) if boxed else 0.01
    expected = torch.linalg.inv(A + 0.01 * torch.eye(d, dtype=torch.float64))
    assert_close(DOUBLE.inverse(A, shift), expected, dimension=d, condition=101.0)
    assert_close(SINGLE.inverse(A.float(), shift), expected.float(), dimension=d, condition=101.0)
    assert torch.equal(A, kept)


@pytest.mark.parametrize("d", [3, LEAF + 1])
def test_a_shift_makes_an_indefinite_matrix_definite_or_is_described_with_it(d: int) -> None:
    A = indefinite(d)
    assert_close(
        A @ DOUBLE.inverse(A, 0.2) + 0.2 * DOUBLE.inverse(A, 0.2), torch.eye(d).double(), condition=20.0
    )
    with pytest.raises(NotPositiveDefinite, match=f"a {d}×{d} factor is not positive definite"):
        DOUBLE.inverse(A, 0.05)


@pytest.mark.parametrize("d", [5, 200])
def test_float32_is_inverted_in_float32_and_stays_so(d: int) -> None:
    A = spd(d, 100.0)
    found = SINGLE.inverse(A.float())
    assert found.dtype == torch.float32
    assert_close(found, Lapack().inverse(A).float(), dimension=d, condition=100.0)


@pytest.mark.parametrize("make", [indefinite, indefinite_in_the_last_complement])
@pytest.mark.parametrize("d", [2, 10, LEAF, LEAF + 1, 150, 300])
@pytest.mark.parametrize("backend", [SINGLE, DOUBLE], ids=["float32", "float64"])
def test_what_is_indefinite_is_refused_wherever_it_shows(make: object, d: int, backend: Full) -> None:
    A = make(d).to(backend.dtypes.parameters)  # type: ignore[operator]
    for factorize in (backend.inverse, backend.cholesky):
        with pytest.raises(
            NotPositiveDefinite, match=f"a {d}×{d} factor is not positive definite in torch.float64"
        ):
            factorize(A)


def too_fine_for_float32(d: int) -> Tensor:
    """A float32 matrix, positive definite by less than a float32 Cholesky factor resolves."""
    for seed in range(50):
        X = normal(d, d // 2, seed=seed)
        for relative in (2**k * 1e-8 for k in range(8)):  # about what rounding to float32 takes away
            A = (X @ X.mT).float()
            A.diagonal().add_(relative * float(A.diagonal().mean()))
            if int(torch.linalg.cholesky_ex(A)[1]) and not int(torch.linalg.cholesky_ex(A.double())[1]):
                return torch.maximum(A, A.mT)
    raise AssertionError("no such matrix was found")


@pytest.mark.parametrize("d", [6, LEAF + 1, 200])
def test_float64_rescues_what_float32_cannot_factorize(d: int) -> None:
    A = too_fine_for_float32(d)
    inverse, root = SINGLE.inverse(A), SINGLE.cholesky(A)
    assert inverse.dtype == root.dtype == torch.float32
    condition = float(torch.linalg.cond(A.double()))
    assert_close(inverse.double(), torch.linalg.inv(A.double()), dimension=d, condition=condition)
    # in float64 but for the rounding of the result itself
    largest = float(torch.linalg.inv(A.double()).abs().max())
    off = float((inverse.double() - torch.linalg.inv(A.double())).abs().max())
    assert off <= 2 * torch.finfo(torch.float32).eps * largest
    assert_close(root @ root.mT, A)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("d", [3, LEAF + 1])
@pytest.mark.parametrize("backend", [SINGLE, DOUBLE], ids=["float32", "float64"])
def test_values_that_are_not_finite_are_named_as_what_is_wrong(bad: float, d: int, backend: Full) -> None:
    for at in ((0, 0), (d - 1, d - 1), (d - 1, 0)):
        A = spd(d, 10.0).to(backend.dtypes.parameters)
        A[at] = A[at[::-1]] = bad
        for factorize in (backend.inverse, backend.cholesky, backend.eigh):
            with pytest.raises(NotPositiveDefinite, match=f"a {d}×{d} factor holds non-finite values"):
                factorize(A)


def test_an_indefinite_matrix_is_described_by_its_smallest_diagonal_entry() -> None:
    A = torch.diag(torch.tensor([1.0, -0.5, 2.0]).double())
    with pytest.raises(NotPositiveDefinite, match=r"smallest diagonal entry -0\.5"):
        DOUBLE.cholesky(A)


@pytest.mark.parametrize("d", [1, 4, 100])
def test_cholesky_factors_and_eigenpairs_make_the_matrix_again(d: int) -> None:
    A = spd(d, 1e4)
    L = DOUBLE.cholesky(A)
    assert torch.equal(L, L.tril())
    assert_close(L @ L.mT, A)
    values, vectors = DOUBLE.eigh(A)
    assert_close(vectors * values @ vectors.mT, A)
    assert_close(vectors.mT @ vectors, torch.eye(d).double())
    assert torch.equal(values, values.sort().values)


def test_an_indefinite_matrix_has_eigenvalues_all_the_same() -> None:
    A = indefinite(6)
    values, vectors = SINGLE.eigh(A.float())
    assert values.dtype == vectors.dtype == torch.float32
    assert float(values[0]) == pytest.approx(-0.1, abs=1e-5)


def test_eigenvalues_are_retried_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """LAPACK in float32 sometimes fails to converge; which matrix does so depends on the library."""
    tried = []

    def failing(A: Tensor) -> tuple[Tensor, Tensor]:
        tried.append(A.dtype)
        if A.dtype == torch.float32:
            raise torch.linalg.LinAlgError("the algorithm failed to converge")
        return eigh(A)

    eigh = torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", failing)
    A = spd(4, 10.0).float()
    values, vectors = SINGLE.eigh(A)
    assert tried == [torch.float32, torch.float64]
    assert values.dtype == vectors.dtype == torch.float32
    assert_close(vectors * values @ vectors.mT, A)


@pytest.mark.parametrize("d", [3, LEAF + 6])
def test_stacks_of_matrices_are_inverted_one_by_one(d: int) -> None:
    stack = torch.stack([spd(d, 100.0, seed) for seed in range(4)]).view(2, 2, d, d)
    found = DOUBLE.inverse(stack)
    for i in range(2):
        for j in range(2):
            assert_close(found[i, j], Lapack().inverse(stack[i, j]), dimension=d, condition=100.0)
    stack[1, 0] = indefinite(d)
    with pytest.raises(NotPositiveDefinite):
        DOUBLE.inverse(stack)


@pytest.mark.parametrize("keep", [0.0, 0.9])
def test_a_gram_is_added_to_an_average(keep: float) -> None:
    M, X = normal(4, 4, seed=0), normal(6, 4, seed=1)
    expected = Lapack().gram_(M.clone(), keep, X, 0.2)
    assert_close(DOUBLE.gram_(M, keep, X, 0.2), expected, dimension=6)
    assert_close(M, expected, dimension=6)


def test_what_an_average_held_is_forgotten_when_nothing_is_kept() -> None:
    """A fresh average starts from whatever memory held, and 0 · NaN is NaN."""
    M, X = torch.full((3, 3), math.nan).double(), normal(5, 3, seed=0)
    assert_close(DOUBLE.gram_(M, 0.0, X, 1.0), X.mT @ X, dimension=5)


def test_dtypes_and_devices_are_what_the_settings_say() -> None:
    assert (SINGLE.dtypes.parameters, DOUBLE.dtypes.parameters) == (torch.float32, torch.float64)
    assert Full().torch_device == torch.device("cpu")
