"""Conjugate gradients solve, stop for the right reason, and do not drift."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvlab.linalg.cg import REFRESH, Stop, conjugate_gradients
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal


class Matrix(LinearOperator[BlockVector]):
    """A matrix that counts its products."""

    self_adjoint = True
    psd = True

    def __init__(self, matrix: Tensor) -> None:
        self.matrix, self.count = matrix, 0

    def __matmul__(self, v: BlockVector) -> BlockVector:
        self.count += 1
        return BlockVector(v.layout, self.matrix @ v.flat)


def spd(d: int, condition: float, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Eigenvalues from 1 down to 1/condition, geometrically."""
    Q = torch.linalg.qr(normal(d, d, seed=seed)).Q
    values = condition ** -torch.linspace(0, 1, d, dtype=torch.float64)
    return ((Q * values) @ Q.mT).to(dtype)


def vector(values: Tensor) -> BlockVector:
    return BlockVector(BlockLayout({"a": (1,), "b": (len(values) - 1,)}), values)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    d=st.integers(2, 30),
    log_condition=st.floats(0, 4),
    tolerance=st.sampled_from([1e-2, 1e-6, 1e-9]),
    seed=st.integers(0, 999),
)
def test_positive_definite_systems_are_solved_to_the_tolerance(
    d: int, log_condition: float, tolerance: float, seed: int
) -> None:
    A, b = spd(d, 10**log_condition, seed), normal(d, seed=seed + 1)
    found = conjugate_gradients(Matrix(A), vector(b), max_iterations=1000, tolerance=tolerance)
    assert found.reason is Stop.CONVERGED
    true = float((b - A @ found.x.flat).norm() / b.norm())
    assert true <= tolerance * (1 + 1e-3) + 1e-13 * 10**log_condition
    assert found.residual == pytest.approx(true * float(b.norm()), rel=1e-3, abs=1e-12 * 10**log_condition)


@pytest.mark.parametrize("d", [2, 5, 9])
def test_d_iterations_solve_a_system_of_dimension_d(d: int) -> None:
    A, b = spd(d, 10.0, 0), normal(d, seed=1)
    found = conjugate_gradients(Matrix(A), vector(b), max_iterations=d, tolerance=1e-12)
    assert found.reason is Stop.CONVERGED
    assert_close(found.x.flat, torch.linalg.solve(A, b), dimension=100, condition=10.0)


def test_as_many_iterations_as_there_are_different_eigenvalues() -> None:
    Q = torch.linalg.qr(normal(12, 12, seed=0)).Q
    values = torch.tensor([1.0, 2.0, 5.0]).double().repeat(4)
    found = conjugate_gradients(
        Matrix((Q * values) @ Q.mT), vector(normal(12, seed=1)), max_iterations=9, tolerance=1e-10
    )
    assert (found.iterations, found.reason) == (3, Stop.CONVERGED)


@pytest.mark.parametrize("limit", [1, 3, 7])
def test_the_limit_is_kept_and_named(limit: int) -> None:
    operator = Matrix(spd(20, 1e4, 0))
    found = conjugate_gradients(operator, vector(normal(20, seed=1)), max_iterations=limit, tolerance=1e-12)
    assert (found.iterations, found.reason) == (limit, Stop.LIMIT)
    assert operator.count == limit


def test_negative_curvature_ends_the_solve_and_keeps_the_iterate_before_it() -> None:
    A = torch.diag(torch.tensor([1.0, 2.0, -3.0]).double())
    b = torch.tensor([1.0, 1.0, 0.1]).double()
    found = conjugate_gradients(Matrix(A), vector(b), max_iterations=9, tolerance=1e-12)
    assert found.reason is Stop.CURVATURE
    before = conjugate_gradients(Matrix(A), vector(b), max_iterations=found.iterations, tolerance=1e-12)
    assert torch.equal(found.x.flat, before.x.flat)
    assert bool(torch.isfinite(found.x.flat).all())


def test_zero_curvature_counts_as_none() -> None:
    found = conjugate_gradients(
        Matrix(torch.zeros(3, 3).double()), vector(torch.ones(3).double()), max_iterations=9, tolerance=1e-3
    )
    assert (found.iterations, found.reason) == (0, Stop.CURVATURE)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["matrix", "right-hand side", "start"])
def test_what_is_not_finite_is_named_and_never_called_converged(bad: float, where: str) -> None:
    A, b, x0 = spd(4, 10.0, 0), normal(4, seed=1), None
    if where == "matrix":
        A[1, 2] = bad
    elif where == "right-hand side":
        b[2] = bad
    else:
        x0 = vector(torch.tensor([0.0, bad, 0.0, 0.0]).double())
    found = conjugate_gradients(Matrix(A), vector(b), x0=x0, max_iterations=9, tolerance=1e-6)
    assert found.reason is Stop.NONFINITE


def test_a_zero_right_hand_side_needs_no_iteration() -> None:
    operator = Matrix(spd(4, 10.0, 0))
    found = conjugate_gradients(operator, vector(torch.zeros(4).double()), max_iterations=9, tolerance=1e-6)
    assert (found.iterations, found.reason, operator.count) == (0, Stop.CONVERGED, 0)
    assert float(found.x.norm()) == 0.0


def test_the_solution_as_a_start_needs_one_product_and_no_iteration() -> None:
    A, b = spd(6, 10.0, 0), normal(6, seed=1)
    operator, x0 = Matrix(A), vector(torch.linalg.solve(A, b))
    kept = x0.flat.clone()
    found = conjugate_gradients(operator, vector(b), x0=x0, max_iterations=9, tolerance=1e-10)
    assert (found.iterations, found.reason, operator.count) == (0, Stop.CONVERGED, 1)
    assert torch.equal(found.x.flat, kept)
    assert found.x.flat.data_ptr() != x0.flat.data_ptr()


def test_a_start_is_improved_and_not_changed() -> None:
    A, b = spd(6, 10.0, 0), normal(6, seed=1)
    x0 = vector(normal(6, seed=2))
    kept = x0.flat.clone()
    found = conjugate_gradients(Matrix(A), vector(b), x0=x0, max_iterations=20, tolerance=1e-12)
    assert_close(found.x.flat, torch.linalg.solve(A, b), dimension=100, condition=10.0)
    assert torch.equal(x0.flat, kept)


@pytest.mark.parametrize("condition", [10.0, 1e6])
def test_the_exact_inverse_as_preconditioner_solves_in_one_iteration(condition: float) -> None:
    A, b = spd(8, condition, 0), normal(8, seed=1)
    inverse = torch.linalg.inv(A)

    def M(r: BlockVector) -> BlockVector:
        return BlockVector(r.layout, inverse @ r.flat)

    found = conjugate_gradients(Matrix(A), vector(b), M=M, max_iterations=9, tolerance=1e-8)
    assert (found.iterations, found.reason) == (1, Stop.CONVERGED)
    assert_close(found.x.flat, torch.linalg.solve(A, b), condition=condition)


def test_a_preconditioner_that_hands_out_its_argument_is_none() -> None:
    A, b = spd(8, 100.0, 0), normal(8, seed=1)
    plain = conjugate_gradients(Matrix(A), vector(b), max_iterations=5, tolerance=1e-12)
    borrowed = conjugate_gradients(
        Matrix(A), vector(b), M=lambda r: r.borrow(), max_iterations=5, tolerance=1e-12
    )
    assert torch.equal(plain.x.flat, borrowed.x.flat)


def test_any_preconditioner_leads_to_the_same_solution() -> None:
    A, b = spd(8, 100.0, 0), normal(8, seed=1)
    scale = A.diagonal().reciprocal()
    found = conjugate_gradients(
        Matrix(A),
        vector(b),
        M=lambda r: BlockVector(r.layout, scale * r.flat),
        max_iterations=30,
        tolerance=1e-12,
    )
    assert found.reason is Stop.CONVERGED
    assert_close(found.x.flat, torch.linalg.solve(A, b), dimension=100, condition=100.0)


def test_the_residual_is_recomputed_from_its_definition_now_and_then() -> None:
    """Each ``REFRESH`` iterations one more product, and the residual reported then is the true one."""
    A = spd(200, 1e6, 0, torch.float32)
    b = normal(200, seed=1).float()
    for iterations in (REFRESH - 1, REFRESH, 2 * REFRESH):
        operator = Matrix(A)
        found = conjugate_gradients(operator, vector(b), max_iterations=iterations, tolerance=1e-9)
        assert found.reason is Stop.LIMIT
        assert operator.count == iterations + iterations // REFRESH
        true = float((b.double() - A.double() @ found.x.flat.double()).norm())
        if iterations % REFRESH == 0:
            assert found.residual == pytest.approx(true, rel=1e-2)


def test_the_recurrence_alone_would_drift() -> None:
    """The reason for recomputing: after many float32 iterations the recurrence believes in convergence."""
    A, b = spd(200, 1e4, 0, torch.float32), normal(200, seed=1).float()
    x, r = torch.zeros_like(b), b.clone()
    p = r.clone()
    for _ in range(10 * REFRESH):
        Ap = A @ p
        alpha = r.dot(r) / p.dot(Ap)
        x, fresh = x + alpha * p, r - alpha * Ap
        p, r = fresh + p * (fresh.dot(fresh) / r.dot(r)), fresh
    true = float((b.double() - A.double() @ x.double()).norm())
    assert float(r.norm()) < 0.1 * true
    found = conjugate_gradients(Matrix(A), vector(b), max_iterations=10 * REFRESH, tolerance=1e-12)
    # at this accuracy b − A x itself is rounding by a few percent, so the law is that it was recomputed
    assert found.residual == pytest.approx(float((b - A @ found.x.flat).norm()), rel=1e-5)


def test_a_factored_right_hand_side_is_read_as_the_matrix_it_is() -> None:
    layout = BlockLayout({"w": (2, 3)})
    b = layout.zeros(like=normal(1, seed=0))
    outer = Outer(normal(2, 2, seed=1), normal(2, 3, seed=2))
    b.outers["w"] = outer
    A = spd(6, 10.0, 0)
    found = conjugate_gradients(Matrix(A), b, max_iterations=20, tolerance=1e-12)
    expected = torch.linalg.solve(A, (outer.left.mT @ outer.right).flatten())
    assert_close(found.x.flat, expected, dimension=100, condition=10.0)


def test_an_operator_that_does_not_promise_to_be_positive_is_not_solved() -> None:
    class Unknown(Matrix):
        psd = False

    with pytest.raises(AssertionError, match="positive semi-definite operator, got Unknown"):
        conjugate_gradients(
            Unknown(torch.eye(3).double()), vector(torch.ones(3).double()), max_iterations=1, tolerance=1e-3
        )


def test_a_preconditioned_residual_that_vanishes_in_rounding_ends_the_solve() -> None:
    """Where the square of a small residual underflows there is nothing left to divide by."""
    matrix = torch.eye(3, dtype=torch.float32)
    b = vector(torch.tensor([1e-30, 0.0, 0.0], dtype=torch.float32))
    found = conjugate_gradients(Matrix(matrix), b, max_iterations=10, tolerance=0.0)
    assert found.reason is Stop.CONVERGED
    assert found.iterations == 0
    assert found.x.is_finite()
