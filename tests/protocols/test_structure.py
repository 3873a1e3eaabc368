"""A structure that does the least it owes works, and says what would make it fast."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import CapabilityError, UnsupportedEvidence
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import GramKronecker, Kronecker
from curvlab.protocols.structure import Family, NaiveFallback, Structure, as_gram, as_group, kronecker_blocks
from curvlab.structures.dense import Dense
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal


@dataclass(frozen=True)
class LazyMatrix(Structure):
    """A symmetric Toeplitz matrix: the least a member owes."""

    bands: Float[Tensor, " d"]
    family: Family

    @property
    def d(self) -> int:
        return self.bands.shape[0]

    def dense(self) -> Float[Tensor, "d d"]:
        index = torch.arange(self.d)
        return self.bands[(index[:, None] - index).abs()]

    def tensors(self) -> dict[str, Tensor]:
        return {"bands": self.bands}


@dataclass(frozen=True)
class Lazy(Family):
    """The least a family owes."""

    def project(self, S: Float[Tensor, "d d"]) -> LazyMatrix:
        return LazyMatrix(torch.stack([S.diagonal(k).mean() for k in range(S.shape[0])]), self)

    def scalars(self, d: int) -> int:
        return d


def lazy(seed: int = 0, d: int = 4) -> LazyMatrix:
    return LazyMatrix(normal(d, seed=seed), Lazy())


X = normal(4, 3, seed=7)
LIKE = torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda M: (M @ X, M.dense() @ X), "LazyMatrix.__matmul__"),
        (lambda M: (M.rmatmul(X.mT), X.mT @ M.dense()), "LazyMatrix.rmatmul"),
        (lambda M: (M.mean_diagonal(), M.dense().diagonal().mean()), "LazyMatrix.mean_diagonal"),
        (lambda M: (M.family.zeros(4, like=LIKE).dense(), torch.zeros(4, 4).double()), "Lazy.zeros"),
        (lambda M: (M.family.eye(4, like=LIKE).dense(), torch.eye(4).double()), "Lazy.eye"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_fallback_is_right_and_names_the_method_worth_writing(call: object, named: str) -> None:
    with pytest.warns(
        NaiveFallback, match=rf"{named.replace('.', '[.]')} falls back to a dense matrix"
    ) as caught:
        found, expected = call(lazy())  # type: ignore[operator]
    assert_close(found, expected, scale=1.0)
    assert caught[0].filename == __file__, "the warning points at who called"


def test_a_fallback_writes_where_it_is_told() -> None:
    out = torch.empty(3, 4, dtype=torch.float64)
    with pytest.warns(NaiveFallback):
        assert lazy().rmatmul(X.mT, out) is out
    assert_close(out, X.mT @ lazy().dense(), scale=1.0)


def test_combining_needs_no_fallback() -> None:
    M, N = lazy(0), lazy(1)
    expected = 0.5 * M.dense() + 2.0 * N.dense()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        M.combine_(0.5, N, 2.0)
        assert M.flops(5) == 2.0 * 4 * 4 * 5
    assert_close(M.dense(), expected)


@pytest.mark.parametrize("family", [Dense(), Diagonal()], ids=str)
def test_the_reference_pair_never_falls_back(family: Family) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        M = family.project(torch.eye(4).double())
        family.zeros(4, like=LIKE), family.eye(4, like=LIKE)
        M @ X, M.rmatmul(X.mT), M.mean_diagonal()


def test_a_family_without_the_capability_is_refused_by_name() -> None:
    with pytest.raises(
        CapabilityError, match=r"layer-covariance needs a structure that is a Gram.*Lazy is not one"
    ):
        as_gram(Lazy(), "layer-covariance")
    assert as_gram(Dense(), "anybody") == Dense()


@dataclass(frozen=True)
class Either(Diagonal):
    """A choice between diagonal matrices and lazy ones."""

    def options(self) -> tuple[Family, ...]:
        return (Diagonal(), Lazy())


def test_a_choice_can_do_what_all_of_its_options_can() -> None:
    with pytest.raises(CapabilityError, match="inverse-free needs a structure that is a Group.*Lazy is not"):
        as_group(Lazy(), "inverse-free")
    assert as_group(Diagonal(), "inverse-free") == Diagonal()
    for capability in (as_gram, as_group):
        with pytest.raises(CapabilityError, match="Lazy is not one"):
            capability(Either(), "anybody")


def test_kronecker_blocks_are_taken_from_a_block_diagonal_or_a_single_one() -> None:
    one = Kronecker(Dense().project(torch.eye(2).double()), None)
    assert kronecker_blocks(BlockDiagonal({"fc": one}), "eigen") == {"fc": one}


def test_blocks_of_another_kind_are_refused_with_part_block_and_remedy() -> None:
    rows = GramKronecker(None, normal(3, 2, seed=0))
    with pytest.raises(UnsupportedEvidence) as caught:
        kronecker_blocks(BlockDiagonal({"fc": rows}), "eigen")
    assert 'eigen on block "fc": expected curvature B ⊗ A, got GramKronecker' in str(caught.value)
    assert 'use "iterative"' in str(caught.value)


def test_factors_that_are_no_grams_are_refused() -> None:
    with pytest.raises(CapabilityError, match="cholesky needs a structure that is a Gram"):
        kronecker_blocks(BlockDiagonal({"fc": Kronecker(lazy(), None)}), "cholesky")
