"""Inverses of Kronecker curvature, and when they are made."""

from __future__ import annotations

import pytest
import torch

from curvlab.errors import CapabilityError, NotPositiveDefinite, UnsupportedEvidence
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker, KroneckerEigen
from curvlab.linalg.operator import LinearOperator, dense_block
from curvlab.linalg.vectors import BlockVector
from curvlab.parts.inverses import Cholesky, DiagonalInverse, Eigen
from curvlab.parts.inverted import Inverted
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Inverse
from curvlab.protocols.structure import Family
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from tests.parts.layers import LAYERS, LastFactors, evidence
from tests.parts.vectors import DTYPE, Matrix, context, spd, vector

LAMBDA = 0.3
FAMILIES: list[tuple[Family | None, Family | None]] = [
    (Dense(), Dense()),
    (Diagonal(), Dense()),
    (Dense(), Diagonal()),
    (Diagonal(), Diagonal()),
    (None, Dense()),
]
families = pytest.mark.parametrize("families", FAMILIES, ids=str)


def curvature(families: tuple[Family | None, Family | None]) -> BlockDiagonal:
    """B [3, 3] ⊗ A [4, 4] of these families."""
    sides = [
        None if f is None else f.project(spd(k, d))
        for k, (f, d) in enumerate(zip(families, (3, 4), strict=True))
    ]
    return BlockDiagonal({"l": Kronecker(*sides)})


def matrix(C: BlockDiagonal) -> torch.Tensor:
    return dense_block(C.blocks["l"], torch.zeros(3, 4, dtype=DTYPE))


def side(factor: object, d: int) -> torch.Tensor:
    eye = torch.eye(d, dtype=DTYPE)
    return eye if factor is None else factor @ eye  # type: ignore[operator,no-any-return]


@families
def test_eigen_inverts_the_exactly_damped_block(families: tuple[Family | None, Family | None]) -> None:
    C = curvature(families)
    found = matrix(Eigen()(C, context(damping=LAMBDA)))
    torch.testing.assert_close(found, torch.linalg.inv(matrix(C) + LAMBDA * torch.eye(12, dtype=DTYPE)))


@families
def test_cholesky_inverts_each_damped_factor(families: tuple[Family | None, Family | None]) -> None:
    C = curvature(families)
    block = C.blocks["l"]
    assert isinstance(block, Kronecker)
    B = side(block.B, 3) + (0.0 if block.B is None else LAMBDA) * torch.eye(3, dtype=DTYPE)
    A = side(block.A, 4) + LAMBDA * torch.eye(4, dtype=DTYPE)
    found = matrix(Cholesky()(C, context(damping=LAMBDA)))
    torch.testing.assert_close(found, torch.linalg.inv(torch.kron(B, A)))


@pytest.mark.parametrize("rule", [Cholesky(), Eigen()], ids=str)
@families
def test_before_the_first_refresh_the_inverse_is_the_identity_in_the_same_records(
    rule: Inverse, families: tuple[Family | None, Family | None]
) -> None:
    C = curvature(families)
    first, later = rule.init(C), rule(C, context(damping=LAMBDA))
    assert isinstance(first, BlockDiagonal)
    torch.testing.assert_close(matrix(first), torch.eye(12, dtype=DTYPE))

    def shapes(found: LinearOperator[BlockVector]) -> dict[str, torch.Size]:
        from curvlab.engine.state import export

        return {path: t.shape for path, t in export(found)[0].items()}

    assert shapes(first) == shapes(later)


@pytest.mark.parametrize("rule", [Cholesky(), Eigen()], ids=str)
def test_a_factor_that_is_not_a_number_is_named_by_its_block(rule: Inverse) -> None:
    bad = Dense().project(torch.full((4, 4), torch.nan, dtype=DTYPE))
    with pytest.raises(NotPositiveDefinite, match='block "l": .*non-finite'):
        rule(BlockDiagonal({"l": Kronecker(None, bad)}), context())


@pytest.mark.parametrize("rule", [Cholesky(), Eigen()], ids=str)
def test_curvature_of_another_kind_is_refused_in_words(rule: Inverse) -> None:
    with pytest.raises(UnsupportedEvidence, match="expected curvature B ⊗ A, got Matrix") as caught:
        rule(Matrix(spd()), context())  # type: ignore[arg-type]
    assert 'use "iterative"' in str(caught.value)


def test_a_factor_that_is_no_gram_is_refused_in_words() -> None:
    class Other(Family):
        def project(self, S: torch.Tensor):  # type: ignore[no-untyped-def]
            member = Dense().project(S)
            object.__setattr__(member, "family", self)
            return member

        def scalars(self, d: int) -> int:
            return d * d

    C = BlockDiagonal({"l": Kronecker(None, Other().project(spd(0, 4)))})
    with pytest.raises(CapabilityError, match="cholesky needs a structure that is a Gram.*Other is not one"):
        Cholesky()(C, context())


# cadence


@pytest.mark.parametrize(("observe", "refresh"), [(1, 1), (1, 3), (2, 4), (3, 2)])
def test_curvature_is_observed_and_inverted_each_on_its_cadence(observe: int, refresh: int) -> None:
    part = Inverted(LastFactors(), Eigen(), observe_every=observe, refresh_every=refresh)
    state = part.init(vector(layout=LAYERS), context())
    held = part.estimator.init(vector(layout=LAYERS), context())
    inverse = Eigen().init(part.estimator.curvature(held))
    for step in range(9):
        ctx, seen, v = context(step, LAMBDA), evidence(step), vector(step, LAYERS)
        assert bool(part.needs(step).layers) == (step % observe == 0)
        part.observe(state, seen, ctx)
        part.refresh(state, ctx)
        if step % observe == 0:
            part.estimator.observe(held, seen, ctx)
        if step % refresh == 0:
            inverse = Eigen()(part.estimator.curvature(held), ctx)
        torch.testing.assert_close(part.apply(state, v, ctx).x.flat, (inverse @ v).flat)


def test_between_refreshes_gradients_may_stay_factored() -> None:
    part = Inverted(LastFactors(), Eigen(), observe_every=4, refresh_every=4)
    assert part.needs(1) == Needs(factored=True)
    assert part.needs(4) == LastFactors().needs() | Needs(factored=True)


def test_apply_changes_neither_vector_nor_state() -> None:
    part, v = Inverted(LastFactors(), Eigen()), vector(1, LAYERS)
    state = part.init(v, context())
    part.observe(state, evidence(0), context())
    part.refresh(state, context(damping=LAMBDA))
    kept = v.flat.clone()
    first = part.apply(state, v, context()).x.flat.clone()
    assert torch.equal(v.flat, kept)
    assert torch.equal(part.apply(state, v, context()).x.flat, first)


@pytest.mark.parametrize(
    "families", [(Diagonal(), Diagonal()), (None, Diagonal()), (Diagonal(), None)], ids=str
)
def test_a_diagonal_of_structures_is_inverted_with_exact_damping(
    families: tuple[Family | None, Family | None],
) -> None:
    C = curvature(families)
    found = matrix(DiagonalInverse()(C, context(damping=LAMBDA)))
    torch.testing.assert_close(found, torch.linalg.inv(matrix(C) + LAMBDA * torch.eye(12, dtype=DTYPE)))
    torch.testing.assert_close(matrix(DiagonalInverse().init(C)), torch.eye(12, dtype=DTYPE))


@pytest.mark.parametrize("families", [(Dense(), Diagonal()), (None, Dense())], ids=str)
def test_what_is_not_diagonal_is_refused_with_what_to_use(
    families: tuple[Family | None, Family | None],
) -> None:
    with pytest.raises(UnsupportedEvidence, match=r'diagonal on block "l": expected diag(.|\n)*"cholesky"'):
        DiagonalInverse()(curvature(families), context())


def test_a_diagonal_with_an_entry_that_is_negative_or_missing_names_its_block() -> None:
    for entry in (-1.0, float("nan")):
        D = torch.ones(3, 4, dtype=DTYPE)
        D[1, 2] = entry
        with pytest.raises(NotPositiveDefinite, match='block "l"'):
            DiagonalInverse()(BlockDiagonal({"l": KroneckerEigen(None, None, D)}), context(damping=LAMBDA))
