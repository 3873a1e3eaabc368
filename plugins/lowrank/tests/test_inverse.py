"""The inverse from part of a spectrum: exact where that part is all there is to know."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.flops import flops
from curvlab.linalg.kronecker import Kronecker
from curvlab.linalg.operator import dense
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.precision.full import Full
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal
from curvlab.testing.reference import Lapack, reference_context
from curvlab_kfac.split_damping import SplitCholesky
from curvlab_lowrank.eigenvalues import FIRST, Search
from curvlab_lowrank.randomized import Randomized
from curvlab_lowrank.spectrum import LowRankInverse, Rest, continued_inverse

D = 40


def spectrum(values: Tensor, seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    Q = torch.linalg.qr(normal(len(values), len(values), seed=seed)).Q
    A = (Q * values) @ Q.mT
    return (A + A.mT) / 2


def curvature(
    shapes: dict[str, tuple[int, int]], *, alone: bool = False
) -> tuple[BlockDiagonal, BlockVector]:
    def side(d: int, seed: int) -> Any:
        X = normal(2 * d, d, seed=seed)
        return Dense().project(X.mT @ X / (2 * d))

    blocks = {
        name: Kronecker(None if alone else side(o, k), side(i, 10 + k))
        for k, (name, (o, i)) in enumerate(shapes.items())
    }
    layout = BlockLayout({name: torch.Size(s) for name, s in shapes.items()})
    return BlockDiagonal(blocks), layout.zeros(like=torch.zeros((), dtype=DTYPE))


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("alone", [False, True], ids=["B ⊗ A", "I ⊗ A"])
def test_with_all_eigenvalues_it_is_kfacs_inverse(relative: bool, alone: bool) -> None:
    C, like = curvature({"a": (3, 5), "b": (1, 4), "c": (4, 1), "d": (1, 1)}, alone=alone)
    for rank in (5, 50):
        ctx = reference_context(0.1)
        found = dense(Randomized(rank=rank, relative=relative)(C, ctx), like)
        assert_close(found, dense(SplitCholesky(relative=relative)(C, ctx), like), condition=1e4)


def test_a_side_that_saw_nothing_is_the_identity() -> None:
    layout = BlockLayout({"a": torch.Size((3, 4))})
    like = layout.zeros(like=torch.zeros((), dtype=DTYPE))
    C = BlockDiagonal({"a": Kronecker(Dense().zeros(3, like=like.flat), Dense().zeros(4, like=like.flat))})
    found = dense(Randomized(relative=True)(C, reference_context(0.1)), like)
    assert_close(found, torch.eye(12, dtype=DTYPE))


@pytest.mark.parametrize(("rest", "rank", "floor"), [("mean", 5, 0.3), ("least", 6, 0.3), ("zero", 5, 0.0)])
def test_it_is_exact_if_the_other_eigenvalues_are_as_said(rest: Rest, rank: int, floor: float) -> None:
    values = torch.cat([torch.arange(5, 0, -1, dtype=DTYPE), torch.full((D - 5,), floor, dtype=DTYPE)])
    M = spectrum(values)
    top, U = Search(rank, D, 0, 0.0).largest(M, Lapack(), torch.Generator().manual_seed(0))
    found = continued_inverse(top, U, M.diagonal().sum(), 0.1, rank, rest)
    expected = torch.linalg.inv(M + 0.1 * torch.eye(D, dtype=DTYPE))
    eye = torch.eye(D, dtype=DTYPE)
    assert_close(found @ eye, expected, condition=1e4)
    assert_close(found.rmatmul(eye), expected, condition=1e4)
    assert_close(found.rmatmul(eye, torch.empty_like(eye)), expected, condition=1e4)


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_largest_eigenvalues_are_found_and_more_rounds_find_them_better(rounds: int) -> None:
    """The relative error is a multiple of (λ_{q+1}/λ_k)^(2 rounds + 2), of q directions for k eigenvalues."""
    values = 0.7 ** torch.arange(D, dtype=DTYPE)
    M = spectrum(values)
    found, U = Search(8, 6, rounds, 0.0).largest(M, Lapack(), torch.Generator().manual_seed(1))
    assert_close(U.mT @ U, torch.eye(8, dtype=DTYPE), dimension=D, condition=10)
    gap = (values[14] / values[7]) ** (2 * rounds + 2)
    assert float(((values[:8] - found) / values[:8]).abs().max()) < 100 * float(gap) + 1e-12
    assert bool((found <= values[:8] * (1 + 1e-12)).all()), "Ritz values are lower bounds"


@pytest.mark.parametrize(("decay", "expected"), [(0.5, FIRST), (0.92, 2 * FIRST), (0.999, 100)])
def test_the_rank_adapts_by_doubling_until_the_spectrum_has_fallen(decay: float, expected: int) -> None:
    M = spectrum(decay ** torch.arange(150, dtype=DTYPE))
    found, _ = Search(100, 10, 2, 0.033).largest(M, Lapack(), torch.Generator().manual_seed(0))
    assert len(found) == expected
    fixed, _ = Search(100, 10, 2, 0.0).largest(M, Lapack(), torch.Generator().manual_seed(0))
    assert len(fixed) == 100


def test_columns_that_are_not_kept_cost_nothing() -> None:
    operator = LowRankInverse.identity(D, 20, torch.empty(0, dtype=DTYPE))
    operator.kept = 3
    x = normal(D, 7, seed=0)
    assert operator.flops(7) == 7 * (4 * D * 3 + 3 + 2 * D)
    assert flops(lambda: operator @ x) == 7 * 4 * D * 3


def test_other_structures_are_inverted_by_their_own_rule() -> None:
    d = normal(6, seed=0).square() + 0.1
    layout = BlockLayout({"a": torch.Size((2, 6))})
    C = BlockDiagonal({"a": Kronecker(None, Diagonal().project(torch.diag(d)))})
    like = layout.zeros(like=torch.zeros((), dtype=DTYPE))
    for made in (Randomized()(C, reference_context(0.1)), Randomized().init(C)):
        assert isinstance(made, BlockDiagonal)
    found = dense(Randomized()(C, reference_context(0.1)), like).diagonal()
    assert_close(found, (1 / (d + 0.1)).repeat(2))


def test_a_matrix_that_is_not_positive_semidefinite_is_refused_by_block() -> None:
    M = spectrum(torch.linspace(-1, 1, D, dtype=DTYPE))
    C = BlockDiagonal({"wide": Kronecker(None, Dense().project(M))})
    with pytest.raises(NotPositiveDefinite, match='"wide"'):
        Randomized(rank=D)(C, reference_context(0.1))


def test_the_refresh_is_quadratic_in_the_dimension_and_the_exact_one_cubic() -> None:
    def spent(d: int) -> tuple[int, int]:
        M, generator = torch.eye(d), torch.Generator().manual_seed(0)
        search, backend = Search(40, 10, 1, 0.0), Full("float32")
        return flops(lambda: search.largest(M, backend, generator)), flops(lambda: backend.inverse(M, 1.0))

    (few, exact_few), (many, exact_many) = spent(512), spent(1024)
    assert many / few < 4.1
    assert exact_many / exact_few > 7
    assert many < 0.4 * exact_many


def test_the_draws_of_a_block_follow_from_its_name_and_the_step() -> None:
    """So processes that share the blocks out find what one process finds."""
    C, like = curvature({"a": (3, 30), "b": (3, 30)})
    part, ctx = Randomized(rank=2, oversampling=1, rounds=0), reference_context(0.1)
    alone = BlockDiagonal({"b": C.blocks["b"]})
    only_b = BlockLayout({"b": torch.Size((3, 30))}).zeros(like=like.flat)
    together = dense(part(C, ctx), like)
    assert torch.equal(dense(part(alone, ctx), only_b), together[90:, 90:])
    assert torch.equal(dense(part(C, ctx), like), together)
    assert not torch.allclose(dense(part(C, replace(ctx, step=ctx.step + 1)), like), together)
