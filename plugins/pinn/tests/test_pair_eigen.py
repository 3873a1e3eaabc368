"""The inverse of a sum of two Kronecker products, against the sum."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from curvlab.errors import NotPositiveDefinite, UnsupportedEvidence
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker, KroneckerEigen, KroneckerSum
from curvlab.linalg.operator import dense_block
from curvlab.parts.inverses import Cholesky
from curvlab.structures.dense import Dense, DenseMatrix
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from curvlab.testing.reference import reference_context
from curvlab_pinn.pair_eigen import PairEigen
from tests.elsewhere import second_device

LAMBDA = 0.3
O, I = 4, 6  # noqa: E741


def gram(d: int, seed: int, rank: int | None = None, scale: float = 1.0) -> DenseMatrix:
    X = normal(rank or 2 * d, d, seed=seed)
    return DenseMatrix(scale * X.mT @ X, Dense())


def pair(scale: float = 1.0) -> KroneckerSum:
    """The second pair singular, and of another size."""
    return KroneckerSum((Kronecker(gram(O, 1), gram(I, 2)), Kronecker(gram(O, 3, 2, scale), gram(I, 4, 3))))


def nearest(M: Tensor) -> DenseMatrix:
    """The nearest PSD matrix, in float64."""
    values, Q = torch.linalg.eigh(M.double())
    return DenseMatrix((Q * values.clamp(min=0.0)) @ Q.mT, Dense())


def damped(term: Kronecker, damping: float = LAMBDA) -> Tensor:
    """``(B + λI) ⊗ (A + λI)`` on row-major vectors."""
    B, A = (M.dense() + damping * torch.eye(M.d, dtype=DTYPE) for M in (term.B, term.A))  # type: ignore[union-attr]
    return torch.kron(B, A)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_it_is_the_inverse_of_the_damped_sum(scale: float) -> None:
    C = pair(scale)
    inverse = PairEigen()(BlockDiagonal({"w": C}), reference_context(LAMBDA)).blocks["w"]
    matrix = sum(damped(t) for t in C.terms)
    assert isinstance(matrix, Tensor)
    found = dense_block(inverse, torch.zeros(O, I, dtype=DTYPE))
    expected = torch.linalg.inv(matrix)
    assert_close(found, expected, dimension=24, condition=float(torch.linalg.cond(matrix)))


def test_of_one_product_it_is_the_cholesky_rule() -> None:
    term = Kronecker(gram(O, 1), gram(I, 2))
    both = [
        r(BlockDiagonal({"w": term}), reference_context(LAMBDA)).blocks["w"]
        for r in (PairEigen(), Cholesky())
    ]
    V = normal(O, I, seed=5)
    assert_close(both[0] @ V, both[1] @ V, dimension=24, condition=1e3)


def test_identities_on_one_side_stay_identities() -> None:
    A = gram(I, 2), gram(I, 4, 3)
    C = KroneckerSum(tuple(Kronecker(None, M) for M in A))
    inverse = PairEigen()(BlockDiagonal({"w": C}), reference_context(LAMBDA)).blocks["w"]
    V, matrix = normal(O, I, seed=5), A[0].dense() + A[1].dense() + 2 * LAMBDA * torch.eye(I).double()
    assert_close(inverse @ V, V @ torch.linalg.inv(matrix), dimension=24, condition=1e3)


@pytest.mark.parametrize("left", [True, False], ids=["identity ⊗ A", "B ⊗ identity"])
def test_identities_lie_beside_the_factors_on_another_device(left: bool) -> None:
    A = [gram(I, 2).matrix, gram(I, 4, 3).matrix]
    with second_device() as device:
        sides = [DenseMatrix(M.to(device), Dense()) for M in A]
        C = KroneckerSum(tuple(Kronecker(None, M) if left else Kronecker(M, None) for M in sides))
        found = PairEigen()(BlockDiagonal({"w": C}), reference_context(LAMBDA)).blocks["w"]
        shape = (O, I) if left else (I, O)
        moved = found @ torch.ones(shape, dtype=DTYPE, device=device)
        assert moved.device == device


def test_it_begins_as_the_identity_with_what_it_will_hold() -> None:
    C = BlockDiagonal({"w": pair()})
    first, later = PairEigen().init(C).blocks["w"], PairEigen()(C, reference_context(LAMBDA)).blocks["w"]
    assert isinstance(first, KroneckerEigen)
    assert isinstance(later, KroneckerEigen)
    V = normal(O, I, seed=5)
    assert torch.equal(first @ V, V)
    for name, t in vars(first).items():
        assert t.shape == vars(later)[name].shape


def test_factors_in_float32_are_inverted_in_float64() -> None:
    """A pair whose condition number is far beyond float32's digits; negative eigenvalues count as zero."""
    wide = pair(1e6)
    narrow = KroneckerSum(
        tuple(
            Kronecker(*(DenseMatrix(M.dense().float(), Dense()) for M in (t.B, t.A)))  # type: ignore[union-attr]
            for t in wide.terms
        )
    )
    exact = KroneckerSum(
        tuple(
            Kronecker(*(nearest(M.dense()) for M in (t.B, t.A)))  # type: ignore[union-attr]
            for t in narrow.terms
        )
    )
    V, ctx = normal(O, I, seed=5), reference_context(1e-4)
    found = PairEigen()(BlockDiagonal({"w": narrow}), ctx).blocks["w"]
    expected = PairEigen()(BlockDiagonal({"w": exact}), ctx).blocks["w"]
    assert isinstance(found, KroneckerEigen)
    assert found.D.dtype == torch.float32
    off = float(((found @ V.float()).double() - expected @ V).norm() / (expected @ V).norm())
    assert off < 1e-4


def test_a_damping_below_the_rounding_of_singular_factors_is_enough() -> None:
    """Factors in float32 of rank 2 and 3, negative by rounding: the inverse of their nearest PSD matrices."""
    singular = [
        gram(d, seed, rank=rank, scale=1e3).dense().float() for d, seed, rank in ((O, 1, 2), (I, 2, 3))
    ]
    clipped = [nearest(M) for M in singular]
    assert min(float(torch.linalg.eigvalsh(M.double())[0]) for M in singular) < -1e-8
    B, A = (DenseMatrix(M, Dense()) for M in singular)
    C, psd = KroneckerSum((Kronecker(B, A),) * 2), KroneckerSum((Kronecker(*clipped),) * 2)
    V, ctx = normal(O, I, seed=5), reference_context(1e-8)
    found = PairEigen()(BlockDiagonal({"w": C}), ctx).blocks["w"] @ V.float()
    expected = PairEigen()(BlockDiagonal({"w": psd}), ctx).blocks["w"] @ V
    assert float((found.double() - expected).norm()) < 1e-4 * float(expected.norm())


@pytest.mark.parametrize("place", range(4))
def test_a_factor_that_rounding_does_not_explain_is_named(place: int) -> None:
    """Any of the four; by its block and its eigenvalue, however large λ is."""
    factors = [gram(O, 1), gram(I, 2), gram(O, 3), gram(I, 4)]
    d = factors[place].d
    wrong = torch.diag(torch.tensor([-0.006, *range(1, d)], dtype=DTYPE))
    factors[place] = DenseMatrix(wrong, Dense())
    C = KroneckerSum((Kronecker(*factors[:2]), Kronecker(*factors[2:])))
    with pytest.raises(NotPositiveDefinite, match=r'block "w".* -0\.006'):
        PairEigen()(BlockDiagonal({"w": C}), reference_context(1.0))


def test_other_structures_are_inverted_too() -> None:
    d = [DenseMatrix(torch.diag(t), Dense()) for t in (torch.rand(O).double() + 0.1, torch.rand(I).double())]
    members = [Diagonal().project(M.dense()) for M in d]
    V, found = normal(O, I, seed=5), []
    for B, A in (d, members):
        C = KroneckerSum((Kronecker(B, A), Kronecker(B, A)))
        found.append(PairEigen()(BlockDiagonal({"w": C}), reference_context(LAMBDA)).blocks["w"] @ V)
    assert_close(found[1], found[0], dimension=24, condition=100)


def test_what_it_refuses() -> None:
    term = Kronecker(gram(O, 1), gram(I, 2))
    for C, got in (
        (KroneckerSum((term,) * 3), "3 terms"),
        (KroneckerSum((term, Kronecker(None, gram(I, 2)))), "2 terms"),
    ):
        with pytest.raises(UnsupportedEvidence, match=f"B₂ ⊗ A₂, got {got}"):
            PairEigen()(BlockDiagonal({"w": C}), reference_context(LAMBDA))
    zero = Kronecker(DenseMatrix(torch.zeros(O, O, dtype=DTYPE), Dense()), gram(I, 2))
    with pytest.raises(NotPositiveDefinite):
        PairEigen()(BlockDiagonal({"w": zero}), reference_context(0.0))
