"""Operators made of operators are what their dense matrices are."""

from __future__ import annotations

import torch

from curvlab.linalg.compose import BlockDiagonal, Counted, Restricted, Shifted
from curvlab.linalg.kronecker import GramKronecker, Kronecker, KroneckerEigen
from curvlab.linalg.operator import LinearOperator, dense, dense_block
from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.structures.dense import Dense
from curvlab.testing.asserts import assert_close, assert_self_adjoint
from curvlab.testing.problems import normal
from curvlab.testing.reference import block_of, kronecker

LAYOUT = BlockLayout({"one": (3, 4), "two": (2, 5), "three": (4, 1)})
SIDES = {name: normal(6, shape[0], seed=k) for k, (name, shape) in enumerate(LAYOUT.shapes.items())}


def psd(d: int, seed: int) -> torch.Tensor:
    X = normal(d + 1, d, seed=seed)
    return X.mT @ X


def block_diagonal() -> BlockDiagonal:
    """Three blocks of three kinds of operator."""
    return BlockDiagonal(
        {
            "one": Kronecker(Dense().project(psd(3, 1)), Dense().project(psd(4, 2))),
            "two": GramKronecker(normal(3, 2, seed=3), normal(3, 5, seed=4)),
            "three": KroneckerEigen(None, None, normal(4, 1, seed=5).square()),
        }
    )


def vector(seed: int, *factored: str) -> BlockVector:
    v = BlockVector(LAYOUT, normal(LAYOUT.size, seed=seed))
    for name in factored:
        o, i = LAYOUT.shapes[name]
        v.outers[name] = Outer(normal(2, o, seed=seed), normal(2, i, seed=seed + 1))
    return v


class Whole(LinearOperator[BlockVector]):
    """A dense matrix."""

    self_adjoint = True
    psd = True

    def __init__(self, matrix: torch.Tensor) -> None:
        self.matrix, self.count = matrix, 0

    def __matmul__(self, v: BlockVector) -> BlockVector:
        self.count += 1
        return BlockVector(v.layout, self.matrix @ v.flat)


def test_a_block_diagonal_operator_is_the_block_diagonal_matrix() -> None:
    C, like = block_diagonal(), LAYOUT.zeros(like=normal(1, seed=0))
    blocks = [dense_block(C.blocks[name], like[name]) for name in LAYOUT.names]
    assert_close(dense(C, like), torch.block_diag(*blocks))
    assert_close(blocks[0], kronecker(psd(3, 1), psd(4, 2)))
    assert_self_adjoint(C, like, psd=True)


def test_factored_blocks_are_handed_on_factored_and_the_vector_is_not_changed() -> None:
    v = vector(0, "one", "two")
    plain = v.clone()
    v = vector(0, "one", "two")
    found = block_diagonal() @ v
    assert set(v.outers) == {"one", "two"}
    assert "one" in found.outers, "2 rows through 3 × 4: the factors are cheaper"
    assert_close(found.flat, dense(block_diagonal(), plain) @ plain.flat, dimension=64)


def test_a_shift_adds_a_multiple_of_the_identity() -> None:
    C, like = block_diagonal(), LAYOUT.zeros(like=normal(1, seed=0))
    shifted = Shifted(C, 0.25)
    assert_close(dense(shifted, like), dense(C, like) + 0.25 * torch.eye(LAYOUT.size).double())
    assert_self_adjoint(shifted, like, psd=True)
    v = vector(0, "one")
    shifted @ v
    assert set(v.outers) == {"one"}


def test_a_restriction_is_a_principal_submatrix() -> None:
    M = psd(LAYOUT.size, 7)
    whole = Whole(M)
    for name in LAYOUT.names:
        part = LAYOUT.restrict((name,))
        small = Restricted(whole, LAYOUT, part)
        assert_close(dense(small, part.zeros(like=M)), block_of(M, LAYOUT, name))
        assert_self_adjoint(small, part.zeros(like=M), psd=True)


def test_counted_products_are_those_of_the_base_through_a_restriction_too() -> None:
    M = psd(LAYOUT.size, 7)
    counted, v = Counted(Whole(M)), vector(0)
    assert_close((counted @ v).flat, M @ v.flat)
    part = LAYOUT.restrict(LAYOUT.names[:1])
    small = Restricted(counted, LAYOUT, part)
    small @ part.zeros(like=M)
    small @ part.zeros(like=M)
    assert counted.count == 3


def test_dense_matrices_have_the_images_of_unit_vectors_as_columns() -> None:
    M = normal(LAYOUT.size, LAYOUT.size, seed=0)
    assert torch.equal(dense(Whole(M), LAYOUT.zeros(like=M)), M)
