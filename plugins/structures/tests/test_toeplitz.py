"""Triangular Toeplitz matrices: their form, and one product computed in three ways."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from curvlab.errors import ConfigError
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab_structures import convolution
from curvlab_structures.convolution import Blocked, Spectral, fast_length
from curvlab_structures.toeplitz import LowerToeplitz, Toeplitz, ToeplitzMatrix, UpperToeplitz
from plugins.structures.tests.walks import assert_stands_for, walk

ALGORITHMS = ("auto", "fft", "direct")
FAMILIES = [side(algorithm) for side, algorithm in product((UpperToeplitz, LowerToeplitz), ALGORITHMS)]
#: below, at and above a block of columns, several of them, and where "auto" transforms
SIZES = (1, 2, 3, 5, 64, 65, 200, 330)

each_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
each_size = pytest.mark.parametrize("d", SIZES)


def of(family: Toeplitz, t: Tensor) -> ToeplitzMatrix:
    return ToeplitzMatrix(t.clone(), family)


def written_out(t: Tensor, upper: bool) -> Tensor:
    """Entry by entry."""
    d = len(t)
    A = torch.zeros(d, d, dtype=t.dtype)
    for i, j in product(range(d), range(d)):
        lag = j - i if upper else i - j
        if lag >= 0:
            A[i, j] = t[lag]
    return A


def means(S: Tensor, upper: bool) -> Tensor:
    """The projection by its formula: sums of the j-th diagonals above and below, over d − j."""
    d = len(S)
    t = [(S.diagonal(j).sum() + S.diagonal(-j).sum()) / (d - j) for j in range(d)]
    return written_out(torch.stack([0.5 * t[0], *t[1:]]), upper)


@each_family
@pytest.mark.parametrize("d", [1, 2, 6])
def test_one_number_stands_along_each_diagonal(family: Toeplitz, d: int) -> None:
    t = normal(d, seed=0)
    assert torch.equal(of(family, t).dense(), written_out(t, family.upper))


@each_family
@pytest.mark.parametrize("d", [1, 2, 3, 6, 70])
def test_after_twenty_updates_it_stands_for_its_matrix(family: Toeplitz, d: int) -> None:
    K, A = walk(family, d)
    assert_stands_for(K, A, lambda S: means(S, family.upper))


@each_family
@each_size
def test_every_algorithm_gives_what_the_matrix_gives(family: Toeplitz, d: int) -> None:
    t, m, X = normal(d, seed=0), normal(d, seed=1), normal(5, d, seed=2)
    K, M = of(family, t), of(family, m)
    A = K.dense()
    S = X @ A
    G = family.gramian(K)
    assert_close(K.rmatmul(X), S, scale=float(t.norm() * X.norm()))
    assert_close(K @ X.mT, A @ X.mT, scale=float(t.norm() * X.norm()))
    assert_close(G.rmatmul(X), S @ A.mT, scale=float(t.norm() * A.norm() * X.norm()))
    assert_close(G @ X.mT, A @ (A.mT @ X.mT), scale=float(t.norm() * A.norm() * X.norm()))
    assert_close(family.product(K, M).dense(), A @ M.dense(), scale=float(t.norm() * m.norm()))
    assert_close(family.square(K).dense(), family.project(A.mT @ A).dense(), scale=float(A.norm()) ** 2)
    assert_close(
        family.congruence(K, X).dense(), family.project(S.mT @ S).dense(), scale=float(S.norm()) ** 2
    )


@pytest.mark.parametrize("d", [3, 65, 785])
@pytest.mark.parametrize("algorithm", ["fft", "direct"])
def test_in_single_precision_errors_are_roundings_of_the_rows(algorithm: str, d: int) -> None:
    """Relative to ‖t‖ ‖x‖, whatever the dimension: no transform loses digits that the direct sum keeps."""
    t, X = normal(d, seed=0), normal(20, d, seed=1) + 3.0  # rows with a mean, as pixels have
    exact = X @ of(UpperToeplitz(), t).dense()
    K = of(UpperToeplitz(algorithm), t.float())  # type: ignore[arg-type]
    off = (K.rmatmul(X.float()).double() - exact).abs().amax(1)
    assert bool((off <= 2.0 * torch.finfo(torch.float32).eps * t.norm() * X.norm(dim=1)).all())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("d", [2, 70])
def test_sixteen_bits_are_kept_and_rounded_once(algorithm: str, dtype: torch.dtype, d: int) -> None:
    """Nothing is summed in 16 bits: the numbers are those of the rounded inputs, rounded."""
    family = UpperToeplitz(algorithm)  # type: ignore[arg-type]
    t, X = (normal(*shape, seed=0).to(dtype) for shape in ((d,), (4, d)))
    K, exact = of(family, t), written_out(t.double(), upper=True)
    S = K.rmatmul(X)
    products = {
        "rmatmul": (S, X.double() @ exact),
        "square": (family.square(K).dense(), means(exact.mT @ exact, True)),
        "congruence": (family.congruence(K, X).dense(), means(S.double().mT @ S.double(), True)),
    }
    for name, (found, expected) in products.items():
        assert found.dtype == dtype
        allowed = 0.51 * torch.finfo(dtype).eps * expected.abs() + 1e-5 * expected.abs().max()
        assert bool(((found.double() - expected).abs() <= allowed).all()), name


def test_auto_transforms_large_matrices_and_sums_small_ones_directly() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        kinds = [type(of(UpperToeplitz(), torch.zeros(d, dtype=dtype)).convolution()) for d in range(1, 700)]
        change = kinds.index(Spectral)
        assert kinds == [Blocked] * change + [Spectral] * (699 - change)
        assert 100 < change < 600


@pytest.mark.parametrize("portion", [1, 100, 1000])
def test_portions_of_rows_make_no_difference(portion: int, monkeypatch: pytest.MonkeyPatch) -> None:
    family, X = LowerToeplitz("fft"), normal(2, 9, 20, seed=0)
    K = ToeplitzMatrix(normal(2, 20, seed=1), family)
    at_once, observed = K.rmatmul(X), family.congruence(K, X).dense()
    monkeypatch.setattr(convolution, "PORTION", portion)
    assert_close(K.rmatmul(X), at_once)
    assert_close(family.congruence(K, X).dense(), observed)


def test_lengths_of_transforms_are_the_least_that_are_quick() -> None:
    quick = [8 * 2**a * 3**b * 5**c for a, b, c in product(range(12), range(8), range(6))]
    for least in (*range(1, 300), 1569, 4001):
        assert fast_length(least) == min(n for n in quick if n >= least)


@each_size
def test_lower_ones_are_the_transposes_of_upper_ones(d: int) -> None:
    t, X = normal(d, seed=0), normal(4, d, seed=1)
    upper, lower = of(UpperToeplitz(), t), of(LowerToeplitz(), t)
    assert torch.equal(upper.dense(), lower.dense().mT)
    assert_close(upper.rmatmul(X), (lower @ X.mT).mT, scale=float(t.norm() * X.norm()))
    # and their reflections at the other diagonal: rows and columns in reverse order
    assert torch.equal(upper.dense().flip(0, 1), lower.dense())
    squares = [K.family.square(K).coefficients for K in (upper, lower)]
    assert_close(*squares, scale=float(squares[0].abs().max()))


@each_family
def test_members_commute(family: Toeplitz) -> None:
    K, M = of(family, normal(12, seed=0)), of(family, normal(12, seed=1))
    there, back = family.product(K, M).coefficients, family.product(M, K).coefficients
    assert_close(there, back)


def test_a_wrong_algorithm_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"algorithm = 'slow' must be one of \"auto\", \"fft\", \"direct\""):
        UpperToeplitz("slow")  # type: ignore[arg-type]
