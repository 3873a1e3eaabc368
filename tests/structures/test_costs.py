"""What the suite's measures of cost measure: that detours are found out, and that flops are counted."""

from __future__ import annotations

import warnings

import torch

from curvlab.protocols.structure import NaiveFallback
from curvlab.testing.costs import counted, operations
from curvlab.testing.dispatch import host_reads, largest
from curvlab.testing.problems import normal
from tests.structures.members import REGISTERED, Naive

#: the dimension at which the suite looks for dense matrices
D = 257

#: those that store fewer than a quarter of a dense matrix's numbers there: the suite holds them to it
SPARSE = [f for f in REGISTERED if f.scalars(D) < D * D / 4]


def test_most_families_are_held_to_that() -> None:
    names = {type(f).__name__ for f in SPARSE}
    assert {"Diagonal", "BlockDiagonal", "LowRank", "Auto"} <= names
    assert len(SPARSE) >= len(REGISTERED) // 2


def test_a_family_that_takes_the_dense_detour_is_found_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NaiveFallback)
        small = {name for name, operation in operations(Naive(), D, 4) if largest(operation) < D * D}
    assert small == {"combine_", "gramian"}, "the two that need no detour"


def test_a_family_that_owes_no_more_works_and_says_what_would_make_it_fast() -> None:
    """Each warning names the method, once for each time it is missed."""
    expected = {
        "zeros": "Naive.zeros",
        "eye": "Naive.eye",
        "matmul": "NaiveMatrix.__matmul__",
        "rmatmul": "NaiveMatrix.rmatmul",
        "rmatmul into": "NaiveMatrix.rmatmul",
        "shift_": "Naive.eye",
        "mean_diagonal": "NaiveMatrix.mean_diagonal",
        "norm": "NaiveMatrix.norm",
        "combine_": "",
        "congruence": "Naive.congruence",
        "square": "Naive.square",
        "product": "Naive.product",
        "gramian": "",
        "gramian matmul": "NaiveMatrix.__matmul__",
        "gramian rmatmul": "NaiveMatrix.rmatmul",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NaiveFallback)
        found = dict(operations(Naive(), 5, 3))
    assert found.keys() == expected.keys()
    for name, operation in found.items():
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            operation()
        words = [str(w.message) for w in caught if w.category is NaiveFallback]
        assert any(expected[name] in w for w in words) if expected[name] else not words, name


def test_products_and_transforms_are_counted() -> None:
    X = normal(3, 5, seed=0)
    assert counted(lambda: X @ X.mT) == (2 * 3 * 5 * 3, 0)
    assert counted(lambda: torch.zeros(3, 3).double().addmm_(X, X.mT)) == (2 * 3 * 5 * 3, 0)
    assert counted(lambda: X[None] @ X.mT[None] + 1) == (2 * 3 * 5 * 3, 0)
    assert counted(lambda: torch.fft.irfft(torch.fft.rfft(X, n=16))) == (0, 2 * 3 * 160)
    assert counted(lambda: X + X) == (0, 0)


def test_what_waits_for_the_device_is_named() -> None:
    A = normal(3, 3, seed=0)
    assert host_reads(lambda: float(A.sum())) == ["_local_scalar_dense"]
    assert host_reads(lambda: A[A > 0]) == ["index"]
    assert host_reads(lambda: A.tolist()) == ["tolist"]
    assert host_reads(lambda: torch.linalg.inv(A)) == ["_linalg_check_errors"]
    assert host_reads(lambda: torch.where(A > 0, A, 0.0) @ A[:2].mT) == []
