"""Three ways to damp and invert B ⊗ A: what each adds, and what each leaves exact."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvlab.engine.state import export
from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker
from curvlab.linalg.operator import dense, dense_block
from curvlab.linalg.vectors import BlockLayout
from curvlab.parts.inverses import Cholesky, Eigen
from curvlab.protocols.preconditioner import Inverse
from curvlab.protocols.structure import Family
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close, assert_self_adjoint
from curvlab.testing.problems import normal
from curvlab.testing.reference import kronecker, reference_context
from curvlab_kfac.split_damping import SplitCholesky

quick = settings(max_examples=30, deadline=None, derandomize=True)
sizes, seeds = st.integers(1, 5), st.integers(0, 999)
dampings = st.sampled_from([1e-4, 1e-2, 1.0])


def psd(d: int, seed: int, rows: int | None = None, scale: float = 1.0) -> Tensor:
    X = normal(rows or d + 2, d, seed=seed)
    return scale * X.mT @ X / len(X)


def block(B: Tensor | None, A: Tensor, family: Family | None = None) -> BlockDiagonal:
    family = family or Dense()
    side = None if B is None else family.project(B)
    return BlockDiagonal({"fc": Kronecker(side, family.project(A))})


def inverted(
    rule: Inverse, B: Tensor | None, A: Tensor, damping: float, family: Family | None = None
) -> Tensor:
    """The matrix of the inverse."""
    found = rule(block(B, A, family), reference_context(damping))
    assert isinstance(found, BlockDiagonal)
    o = len(A) if B is None else len(B)
    return dense_block(found.blocks["fc"], torch.zeros(o, len(A)).double())


def damped(rule: Inverse, B: Tensor | None, A: Tensor, damping: float) -> Tensor:
    """What was inverted."""
    return torch.linalg.inv(inverted(rule, B, A, damping))


def eye(d: int) -> Tensor:
    return torch.eye(d).double()


def assert_inverse(X: Tensor, C: Tensor) -> None:
    assert_close(X, torch.linalg.inv(C), condition=float(torch.linalg.cond(C)))


# the sum of each


@quick
@given(o=sizes, i=sizes, seed=seeds, damping=dampings)
def test_cholesky_adds_the_damping_to_each_factor(o: int, i: int, seed: int, damping: float) -> None:
    B, A = psd(o, seed), psd(i, seed + 1)
    C = kronecker(B + damping * eye(o), A + damping * eye(i))
    assert_inverse(inverted(Cholesky(), B, A, damping), C)


@quick
@given(o=sizes, i=sizes, seed=seeds, damping=dampings, rows=st.integers(1, 4))
def test_eigen_adds_the_damping_to_the_product(o: int, i: int, seed: int, damping: float, rows: int) -> None:
    """Singular factors included: (B ⊗ A + λI)⁻¹, exactly."""
    B, A = psd(o, seed, rows), psd(i, seed + 1, rows)
    assert_inverse(inverted(Eigen(), B, A, damping), kronecker(B, A) + damping * eye(o * i))


@quick
@given(
    o=st.integers(2, 5),
    i=st.integers(2, 5),
    seed=seeds,
    damping=dampings,
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_split_damping_adds_its_two_shares(o: int, i: int, seed: int, damping: float, scale: float) -> None:
    B, A = psd(o, seed, scale=scale), psd(i, seed + 1)
    pi = ((A.trace() / i) / (B.trace() / o)).sqrt()
    root = damping**0.5
    C = kronecker(B + root / pi * eye(o), A + root * pi * eye(i))
    assert_inverse(inverted(SplitCholesky(), B, A, damping), C)
    share = root * (pi * kronecker(B, eye(i)) + kronecker(eye(o), A) / pi)  # what the docstring says is added
    assert_close(C, kronecker(B, A) + share + damping * eye(o * i), dimension=8)


@quick
@given(o=sizes, i=sizes, seed=seeds, damping=dampings, rows=st.integers(1, 4))
def test_split_damping_is_the_exact_one_and_more(
    o: int, i: int, seed: int, damping: float, rows: int
) -> None:
    """The damped block is at least C + λI: never less damped than asked, whatever the ranks."""
    B, A = psd(o, seed, rows), psd(i, seed + 1, rows)
    C = damped(SplitCholesky(), B, A, damping)
    excess = torch.linalg.eigvalsh(0.5 * (C + C.mT) - kronecker(B, A) - damping * eye(o * i))
    assert float(excess[0]) >= -1e-10 * float(C.abs().max())


# invariances and edges of the split


@quick
@given(o=sizes, i=sizes, seed=seeds, damping=dampings, t=st.sampled_from([1e-3, 0.5, 7.0, 1e3]))
def test_scale_that_the_factors_exchange_changes_nothing(
    o: int, i: int, seed: int, damping: float, t: float
) -> None:
    B, A = psd(o, seed), psd(i, seed + 1)
    condition = float(torch.linalg.cond(damped(SplitCholesky(), B, A, damping)))
    expected = inverted(SplitCholesky(), B, A, damping)
    assert_close(inverted(SplitCholesky(), B / t, t * A, damping), expected, condition=condition)
    exact = inverted(Eigen(), B, A, damping)
    assert_close(inverted(Eigen(), B / t, t * A, damping), exact, condition=condition)


def test_cholesky_is_not_indifferent_to_that_scale() -> None:
    """Which is the reason for splitting."""
    B, A = psd(3, 0), psd(4, 1)
    one, other = inverted(Cholesky(), B, A, 0.1), inverted(Cholesky(), B / 10, 10 * A, 0.1)
    assert float((one - other).norm() / one.norm()) > 0.1


@pytest.mark.parametrize(("o", "i"), [(1, 4), (4, 1), (1, 1)])
@pytest.mark.parametrize("damping", [0.0, 0.05])
def test_a_side_that_is_a_number_leaves_the_damping_exact(o: int, i: int, damping: float) -> None:
    B, A = psd(o, 0), psd(i, 1)
    assert_inverse(inverted(SplitCholesky(), B, A, damping), kronecker(B, A) + damping * eye(o * i))


@pytest.mark.parametrize(("o", "i"), [(1, 4), (4, 1), (3, 4)])
def test_a_side_that_is_zero_leaves_the_damping_alone(o: int, i: int) -> None:
    """Nothing was learnt of the block: it is λI, or more where the other side is not zero."""
    for B, A in ((torch.zeros(o, o).double(), psd(i, 1)), (psd(o, 1), torch.zeros(i, i).double())):
        C = damped(SplitCholesky(), B, A, 0.04)
        excess = torch.linalg.eigvalsh(0.5 * (C + C.mT) - 0.04 * eye(o * i))
        assert float(excess[0]) >= -1e-9
        if min(o, i) == 1:
            assert_close(C, 0.04 * eye(o * i), condition=1e4)


@pytest.mark.parametrize("rule", [Cholesky(), Eigen(), SplitCholesky()], ids=lambda r: type(r).__name__)
def test_an_identity_side_stays_the_identity_and_the_damping_exact(rule: Inverse) -> None:
    A = psd(4, 1)
    assert_inverse(inverted(rule, None, A, 0.03), kronecker(eye(4), A) + 0.03 * eye(16))


@pytest.mark.parametrize("rule", [Cholesky(), Eigen(), SplitCholesky()], ids=lambda r: type(r).__name__)
def test_diagonal_factors_are_inverted_as_their_dense_ones(rule: Inverse) -> None:
    B, A = psd(3, 0).diagonal().diag(), psd(4, 1).diagonal().diag()
    assert_close(inverted(rule, B, A, 0.1, Diagonal()), inverted(rule, B, A, 0.1), condition=100.0)


@pytest.mark.parametrize("rule", [Cholesky(), Eigen(), SplitCholesky()], ids=lambda r: type(r).__name__)
def test_an_inverse_is_self_adjoint_and_positive(rule: Inverse) -> None:
    found = rule(block(psd(3, 0), psd(4, 1)), reference_context(0.1))
    like = BlockLayout({"fc": (3, 4)}).zeros(like=eye(1))
    assert_self_adjoint(found, like, psd=True)
    assert dense(found, like).shape == (12, 12)


@pytest.mark.parametrize("rule", [Cholesky(), Eigen(), SplitCholesky()], ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("B", [psd(3, 0), None], ids=["B", "B = I"])
def test_before_the_first_refresh_an_inverse_is_the_identity_with_every_tensor(
    rule: Inverse, B: Tensor | None
) -> None:
    A = psd(3, 1)
    first, later = rule.init(block(B, A)), rule(block(B, A), reference_context(0.1))
    assert_close(dense_block(first.blocks["fc"], A), eye(9))  # type: ignore[attr-defined]
    shapes = [{k: t.shape for k, t in export(state)[0].items()} for state in (first, later)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("rule", [Cholesky(), SplitCholesky()], ids=lambda r: type(r).__name__)
def test_a_factor_that_no_damping_saves_is_named_by_its_block(rule: Inverse) -> None:
    with pytest.raises(NotPositiveDefinite, match='block "fc"'):
        rule(block(psd(3, 0), -psd(4, 1) - 5 * eye(4)), reference_context(1e-3))


@pytest.mark.parametrize("rule", [Cholesky(), Eigen(), SplitCholesky()], ids=lambda r: type(r).__name__)
def test_a_factor_that_is_not_finite_is_named_by_its_block(rule: Inverse) -> None:
    A = psd(4, 1)
    A[1, 2] = A[2, 1] = torch.nan
    with pytest.raises(NotPositiveDefinite, match='block "fc"'):
        rule(block(psd(3, 0), A), reference_context(1e-3))


# λ in units of the curvature


@quick
@given(o=sizes, i=sizes, seed=seeds, damping=dampings, scale=st.sampled_from([1e-6, 1.0, 1e4]))
def test_a_relative_damping_is_in_units_of_the_mean_curvature(
    o: int, i: int, seed: int, damping: float, scale: float
) -> None:
    """Exchanging scale between the sides, or scaling the block, scales the inverse alone."""
    A, B = psd(i, seed, scale=3.0), psd(o, seed + 1, scale=scale)
    mean = float(A.trace() / i * B.trace() / o)
    for plain, relative in ((SplitCholesky(), SplitCholesky(True)), (Eigen(), Eigen(True))):
        expected = inverted(plain, B, A, damping * mean)
        assert_close(inverted(relative, B, A, damping), expected, condition=1e4)
    shifts = [damping * float(M.trace() / len(M)) for M in (B, A)]
    inverses = [torch.linalg.inv(M + s * eye(len(M))) for M, s in zip((B, A), shifts, strict=True)]
    assert_close(inverted(Cholesky(True), B, A, damping), kronecker(*inverses), condition=1e4)


def test_what_saw_no_curvature_is_taken_for_the_identity() -> None:
    zero, A = torch.zeros(2, 2).double(), psd(3, 0)
    for rule in (SplitCholesky(True), Cholesky(True)):
        X = inverted(rule, zero, A, 0.1)
        assert bool(torch.isfinite(X).all())
