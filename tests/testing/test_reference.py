"""The dense truths agree with each other, with finite differences and with what is known by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.protocols.structure import Family, Structure
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import bowl, classifier, deep_linear, normal
from curvlab.testing.reference import (
    Lapack,
    Likelihood,
    block_diagonal,
    block_of,
    damped_solve,
    empirical_fisher,
    entries,
    fisher,
    ggn,
    gradient,
    jacobian,
    kronecker,
    mean_loss,
    nearest_member,
    output_hessian,
    per_example_gradients,
    reference_context,
)


def test_a_jacobian_is_what_finite_differences_say() -> None:
    problem = classifier("squared-error", 2)
    model = problem.model()
    blocks = problem.blocks(model)
    J = jacobian(model, problem.inputs, blocks)
    theta, h = blocks.read(), 1e-6
    for k in range(0, blocks.layout.size, 7):
        f = []
        for sign in (1.0, -1.0):
            moved = theta.clone()
            moved.flat[k] += sign * h
            blocks.assign_(moved)
            f.append(model(problem.inputs).detach().flatten())
        blocks.assign_(theta)
        assert float(((f[0] - f[1]) / (2 * h) - J[:, k]).abs().max()) < 1e-8


KAPPA: list[tuple[Likelihood, str, float]] = [
    ("cross-entropy", "mean", 1.0),
    ("squared-error", "mean", 1 / 3),
    ("squared-error", "sum", 1.0),
    ("binary-cross-entropy", "mean", 1 / 3),
    ("binary-cross-entropy", "sum", 1.0),
]


@pytest.mark.parametrize(("likelihood", "reduction", "kappa"), KAPPA)
def test_the_enumerated_fisher_is_the_ggn(likelihood: Likelihood, reduction: str, kappa: float) -> None:
    problem = classifier(likelihood, 3, reduction=reduction)
    model = problem.model()
    blocks = problem.blocks(model)
    G = ggn(model, problem.criterion, problem.inputs, problem.targets, blocks)
    assert_close(fisher(model, likelihood, problem.inputs, blocks, kappa), G)


def test_the_ggn_of_a_linear_model_is_the_hessian() -> None:
    problem = bowl()
    model = problem.model()
    blocks = problem.blocks(model)
    rows = torch.cat([problem.inputs, torch.ones(problem.examples, 1).double()], dim=1)
    # squared error averaged over two coordinates has output Hessian 2κ = 1
    expected = kronecker(torch.eye(2).double(), rows.mT @ rows / problem.examples)
    assert_close(ggn(model, problem.criterion, problem.inputs, problem.targets, blocks), expected)


def test_per_example_gradients_average_to_the_gradient() -> None:
    problem = classifier("cross-entropy", 5)
    model = problem.model()
    blocks = problem.blocks(model)
    each = per_example_gradients(model, problem.criterion, problem.inputs, problem.targets, blocks)
    whole = gradient(mean_loss(problem.criterion, model(problem.inputs), problem.targets), blocks)
    assert_close(each.mean(0), whole)


def test_the_empirical_fisher_of_one_example_has_rank_one() -> None:
    problem = classifier("cross-entropy", 1)
    model = problem.model()
    blocks = problem.blocks(model)
    F = empirical_fisher(model, problem.criterion, problem.inputs, problem.targets, blocks)
    values = torch.linalg.eigvalsh(F)
    assert float(values[-1]) > 0
    assert float(values[:-1].abs().max()) < 1e-14 * float(values[-1])


def test_the_hessian_of_a_sum_is_divided_by_the_examples() -> None:
    for reduction in ("mean", "sum"):
        problem = deep_linear(4, reduction=reduction)
        outputs = problem.model()(problem.inputs)
        kappa = 1 / outputs.shape[1] if reduction == "mean" else 1.0
        H = output_hessian(problem.criterion, outputs, problem.targets)
        assert_close(H, torch.eye(outputs.numel()).double() * 2 * kappa / 4)


def test_blocks_are_cut_out_of_the_whole() -> None:
    problem = deep_linear(2)
    layout = problem.blocks(problem.model()).layout
    M = normal(layout.size, layout.size, seed=0)
    parts = [block_of(M, layout, name) for name in layout.names]
    assert torch.equal(block_diagonal(M, layout), torch.block_diag(*parts))


def test_a_kronecker_product_acts_on_row_major_vectors() -> None:
    B, A, V = normal(3, 3, seed=0), normal(4, 4, seed=1), normal(3, 4, seed=2)
    assert_close(kronecker(B, A) @ V.flatten(), (B @ V @ A.mT).flatten(), dimension=12)
    assert torch.equal(kronecker(B, A), torch.kron(B, A))


def test_a_damped_solve_solves() -> None:
    X, g = normal(4, 6, seed=0), normal(6, seed=1)
    C = X.mT @ X
    x = damped_solve(C, 0.1, g)
    assert_close(C @ x + 0.1 * x, g, condition=float(torch.linalg.cond(C + 0.1 * torch.eye(6))))


@dataclass(frozen=True)
class LowerMatrix(Structure):
    """A lower-triangular matrix, row by row."""

    values: Tensor
    d_: int
    family: Family

    @property
    def d(self) -> int:
        return self.d_

    def tensors(self) -> dict[str, Tensor]:
        return {"values": self.values}

    def dense(self) -> Float[Tensor, "d d"]:
        M = self.values.new_zeros(self.d, self.d)
        M[tuple(torch.tril_indices(self.d, self.d))] = self.values
        return M


@dataclass(frozen=True)
class Lower(Family):
    """Π(S): the lower triangle of S, off-diagonal entries doubled."""

    def project(self, S: Float[Tensor, "d d"]) -> Structure:
        d = S.shape[0]
        doubled = 2 * S - S.diagonal().diag()
        return LowerMatrix(doubled[tuple(torch.tril_indices(d, d))], d, self)

    def zeros(self, d: int, *, like: Tensor) -> Structure:
        return LowerMatrix(like.new_zeros(self.scalars(d)), d, self)

    def scalars(self, d: int) -> int:
        return d * (d + 1) // 2


@pytest.mark.parametrize("d", [1, 2, 5])
def test_the_nearest_member_is_known_for_dense_diagonal_and_triangular(d: int) -> None:
    S = normal(d, d, seed=0)
    S = S + S.mT
    assert_close(nearest_member(Dense(), S), S, dimension=d * d)
    assert_close(nearest_member(Diagonal(), S), S.diagonal().diag(), dimension=d * d)
    assert_close(nearest_member(Lower(), S), Lower().project(S).dense(), dimension=d * d)


def test_entries_are_one_column_per_stored_scalar() -> None:
    member = Lower().zeros(3, like=normal(1, seed=0))
    E = entries(member)
    assert E.shape == (9, 6)
    assert torch.equal(E.sum(0), torch.ones(6).double())
    values = normal(6, seed=1)
    member.values.copy_(values)
    assert torch.equal((E @ values).view(3, 3), member.dense())


def test_the_lapack_backend_is_dense_algebra() -> None:
    backend, X = Lapack(), normal(7, 4, seed=0)
    M = normal(4, 4, seed=1)
    assert_close(backend.gram_(M.clone(), 0.3, X, 0.5), 0.3 * M + 0.5 * X.mT @ X, dimension=7)
    A = X.mT @ X
    condition = float(torch.linalg.cond(A))
    L = backend.cholesky(A)
    assert_close(L @ L.mT, A)
    assert_close(backend.inverse(A) @ A, torch.eye(4).double(), condition=condition)
    assert_close(backend.inverse(A, 0.5), torch.linalg.inv(A + 0.5 * torch.eye(4)), condition=condition)
    values, vectors = backend.eigh(A)
    assert_close(vectors * values @ vectors.mT, A)
    for fails in (backend.cholesky, backend.inverse):
        with pytest.raises(NotPositiveDefinite, match=r"shape \(4, 4\)"):
            fails(-A)


def test_a_reference_context_says_what_it_was_told() -> None:
    ctx = reference_context(0.25, step=7, seed=3)
    assert (ctx.step, ctx.damping, ctx.backend.dtypes.parameters) == (7, 0.25, torch.float64)
    again = reference_context(seed=3).generator
    assert torch.equal(torch.rand(3, generator=ctx.generator), torch.rand(3, generator=again))
    assert math.isclose(ctx.damping, 0.25)
