"""Kronecker operators are the dense products, by whichever order of contraction is cheaper."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from curvlab.linalg.kronecker import GramKronecker, Kronecker, KroneckerEigen, KroneckerSum, rotate
from curvlab.linalg.operator import BlockOperator, dense_block
from curvlab.linalg.outer import Outer
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab.testing.reference import kronecker

quick = settings(max_examples=40, deadline=None, derandomize=True)
sizes = st.integers(1, 6)


@dataclass
class Counting:
    """A symmetric factor that counts the flops of what is asked of it."""

    matrix: Tensor
    price: float = 2.0
    spent: list[float] = field(default_factory=list)

    def __matmul__(self, x: Tensor) -> Tensor:
        self.spent.append(self.flops(x.shape[1]))
        return self.matrix @ x

    def rmatmul(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        self.spent.append(self.flops(x.shape[0]))
        return torch.matmul(x, self.matrix, out=out)

    def flops(self, columns: int) -> float:
        return self.price * self.matrix.shape[0] ** 2 * columns


def symmetric(d: int, seed: int) -> Tensor:
    M = normal(d, d, seed=seed)
    return M + M.mT


def matrix_of(factor: Counting | None, d: int) -> Tensor:
    return torch.eye(d).double() if factor is None else factor.matrix


@st.composite
def products(draw: st.DrawFn) -> tuple[Kronecker, Tensor | Outer, Tensor, Tensor]:
    """An operator, a vector (factored or not), its dense form, and the operator's matrix."""
    o, i, r, seed = draw(sizes), draw(sizes), draw(st.integers(1, 9)), draw(st.integers(0, 999))
    B = Counting(symmetric(o, seed), draw(st.sampled_from((1.0, 2.0, 9.0)))) if draw(st.booleans()) else None
    A = Counting(symmetric(i, seed + 1)) if draw(st.booleans()) else None
    M = kronecker(matrix_of(B, o), matrix_of(A, i))
    if draw(st.booleans()):
        outer = Outer(normal(r, o, seed=seed + 2), normal(r, i, seed=seed + 3))
        return Kronecker(B, A), outer, outer.left.mT @ outer.right, M
    V = normal(o, i, seed=seed + 2)
    return Kronecker(B, A), V, V, M


def image(operator: BlockOperator, v: Tensor | Outer, out: Tensor | None = None) -> Tensor:
    found = operator.product(v, out)
    return found.left.mT @ found.right if isinstance(found, Outer) else found


@quick
@given(products())
def test_a_product_is_that_of_the_dense_matrix(
    case: tuple[Kronecker, Tensor | Outer, Tensor, Tensor],
) -> None:
    operator, v, V, M = case
    expected = (M @ V.flatten()).view(V.shape)
    size = float(M.abs().max() * V.abs().max()) * V.numel()
    assert_close(image(operator, v), expected, dimension=36, scale=size)
    out = torch.full_like(V, torch.nan)
    found = operator.product(v, out)
    assert found is out or isinstance(found, Outer), "a matrix is written where it was asked to be"
    assert_close(found.dense() if isinstance(found, Outer) else out, expected, dimension=36, scale=size)
    assert_close(operator @ V, expected, dimension=36, scale=size)


@quick
@given(products())
def test_of_two_contraction_orders_the_cheaper_is_taken(
    case: tuple[Kronecker, Tensor | Outer, Tensor, Tensor],
) -> None:
    operator, v, V, _ = case
    if not isinstance(v, Outer):
        v = Outer(V.mT.new_ones(2, V.shape[0]), V.new_ones(2, V.shape[1]))
    factors = [f for f in (operator.B, operator.A) if f is not None]
    for f in factors:
        assert isinstance(f, Counting)
        f.spent.clear()
    (o, i), r = V.shape, v.left.shape[0]
    found = operator.product(v)

    def cost(b: int, a: int) -> float:
        return sum(f.flops(k) for f, k in ((operator.B, b), (operator.A, a)) if f is not None)

    spent = sum(sum(f.spent) for f in factors if isinstance(f, Counting))
    assert spent == min(cost(r, r), cost(i, o))
    assert isinstance(found, Outer) == (cost(r, r) < cost(i, o))


def test_both_orders_agree() -> None:
    """One matrix as 3 rows, cheaper through the factors, and as the 27 rows that they are nine times over."""
    left, right = normal(3, 4, seed=0), normal(3, 5, seed=1)
    operator = Kronecker(Counting(symmetric(4, 2)), Counting(symmetric(5, 3)))
    factored = operator.product(Outer(left, right))
    whole = operator.product(Outer(torch.cat([left] * 9), torch.cat([right] * 9) / 9))
    assert isinstance(factored, Outer)
    assert isinstance(whole, Tensor)
    assert_close(factored.dense(), whole, dimension=60)


def test_a_sum_is_the_sum_of_its_products() -> None:
    (o, i), out = (4, 3), torch.empty(4, 3, dtype=torch.float64)
    terms = tuple(Kronecker(Counting(symmetric(o, k)), Counting(symmetric(i, k + 9))) for k in (1, 2, 3))
    V = normal(o, i, seed=4)
    expected = sum(dense_block(t, V) for t in terms) @ V.reshape(-1)  # type: ignore[operator]
    assert_close(KroneckerSum(terms).product(V, out).reshape(-1), expected, dimension=o * i)
    left, right = normal(2, o, seed=5), normal(2, i, seed=6)
    held = KroneckerSum(terms).product(Outer(left, right))
    assert_close(held, KroneckerSum(terms) @ (left.mT @ right), dimension=o * i)
    assert torch.equal(out, KroneckerSum(terms) @ V)


def test_identities_on_both_sides_change_nothing() -> None:
    V = normal(3, 4, seed=0)
    assert torch.equal(Kronecker(None, None) @ V, V)
    out = torch.empty_like(V)
    assert Kronecker(None, None).product(V, out) is out
    assert torch.equal(out, V)


@quick
@given(
    o=sizes, i=sizes, r=st.integers(1, 5), q=st.integers(1, 5), seed=st.integers(0, 999), bare=st.booleans()
)
def test_gram_matrices_are_multiplied_with_and_never_formed(
    o: int, i: int, r: int, q: int, seed: int, bare: bool
) -> None:
    G, A = None if bare else normal(r, o, seed=seed), normal(q, i, seed=seed + 1)
    B = torch.eye(o).double() if G is None else G.mT @ G
    expected = kronecker(B, A.mT @ A)
    operator, V = GramKronecker(G, A), normal(o, i, seed=seed + 2)
    size = float(expected.abs().max())
    assert_close(dense_block(operator, V), expected, dimension=16, scale=size)
    outer, out = Outer(normal(2, o, seed=seed), normal(2, i, seed=seed + 3)), torch.empty_like(V)
    assert operator.product(outer, out) is out
    dense_vector = outer.left.mT @ outer.right
    image_of = (expected @ dense_vector.flatten()).view(o, i)
    assert_close(out, image_of, dimension=36, scale=size * float(dense_vector.abs().max()) * o * i)


@quick
@given(o=sizes, i=sizes, seed=st.integers(0, 999), b=st.booleans(), a=st.booleans(), r=st.integers(1, 9))
def test_an_eigenbasis_operator_is_a_diagonal_in_that_basis(
    o: int, i: int, seed: int, b: bool, a: bool, r: int
) -> None:
    Q_B = torch.linalg.qr(normal(o, o, seed=seed)).Q if b else None
    Q_A = torch.linalg.qr(normal(i, i, seed=seed + 1)).Q if a else None
    D, V = normal(o, i, seed=seed + 2), normal(o, i, seed=seed + 3)
    operator = KroneckerEigen(Q_B, Q_A, D)
    Q = kronecker(
        torch.eye(o).double() if Q_B is None else Q_B, torch.eye(i).double() if Q_A is None else Q_A
    )
    assert_close(dense_block(operator, V), Q * D.flatten() @ Q.mT, dimension=36, scale=float(D.abs().max()))
    outer = Outer(normal(r, o, seed=seed + 4), normal(r, i, seed=seed + 5))
    whole = outer.left.mT @ outer.right
    size = float(whole.abs().max()) * o * i
    assert_close(rotate(outer, Q_B, Q_A), rotate(whole, Q_B, Q_A), dimension=36, scale=size)
    assert_close(rotate(whole, Q_B, Q_A).flatten(), Q.mT @ whole.flatten(), dimension=36, scale=size)
    out = torch.empty_like(V)
    assert operator.product(V, out) is out
    assert_close(out, operator @ V, dimension=36, scale=size + 1)


@pytest.mark.parametrize(
    "operator", [Kronecker(None, None), KroneckerEigen(None, None, normal(3, 4, seed=0))]
)
def test_a_product_changes_neither_vector_nor_factors(operator: BlockOperator) -> None:
    outer = Outer(normal(2, 3, seed=1), normal(2, 4, seed=2))
    left, right, V = outer.left.clone(), outer.right.clone(), normal(3, 4, seed=3)
    kept = V.clone()
    operator.product(outer)
    operator.product(V)
    assert torch.equal(outer.left, left)
    assert torch.equal(outer.right, right)
    assert torch.equal(V, kept)
