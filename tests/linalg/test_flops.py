"""Flops: every kernel by its formula, torch's own among them, and nothing for element-wise work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from curvlab.linalg.flops import FORMULAS, flops, flops_by_kind
from curvlab.testing.problems import normal

N, M, K = 6, 9, 4

A, R, V = normal(N, N, seed=0), normal(M, N, seed=1), normal(N, seed=2)
S = A @ A.mT + N * torch.eye(N, dtype=A.dtype)
STACK = normal(3, N, N, seed=3)
Q = normal(2, 2, K, 8, seed=4)

#: what is done, and what it costs
CASES: dict[str, tuple[Callable[[], Any], int]] = {
    "mm": (lambda: R @ A, 2 * M * N * N),
    "mm into": (lambda: torch.mm(R, A, out=torch.empty_like(R)), 2 * M * N * N),
    "bmm": (lambda: STACK @ STACK, 3 * 2 * N**3),
    "addmm_": (lambda: A.clone().addmm_(A, S), 2 * N**3),
    "baddbmm_": (lambda: STACK.clone().baddbmm_(STACK, STACK), 3 * 2 * N**3),
    "addbmm": (lambda: torch.addbmm(A, STACK, STACK), 3 * 2 * N**3),
    "mv": (lambda: R @ V, 2 * M * N),
    "addmv": (lambda: torch.addmv(V, A, V), 2 * N * N),
    "dot": (lambda: V @ V, 2 * N),
    "outer": (lambda: torch.outer(V, V), N * N),
    "einsum outer": (lambda: torch.einsum("ni,nj->nij", R, R), M * N * N),
    "addr": (lambda: torch.addr(A, V, V), 2 * N * N),
    "eigh": (lambda: torch.linalg.eigh(S), 9 * N**3),
    "eigh of a stack": (lambda: torch.linalg.eigh(STACK + STACK.mT), 3 * 9 * N**3),
    "svd": (lambda: torch.linalg.svd(R, full_matrices=False), 6 * M * N**2 + 20 * N**3),
    "cholesky": (lambda: torch.linalg.cholesky(S), N**3 // 3),
    "cholesky_inverse": (lambda: torch.cholesky_inverse(S), 2 * N**3 // 3),
    "cholesky_solve": (lambda: torch.cholesky_solve(R.mT, S), 2 * N * N * M),
    "triangular, left": (lambda: torch.linalg.solve_triangular(S, R.mT, upper=False), N * N * M),
    "triangular, right": (lambda: torch.linalg.solve_triangular(S, R, upper=False, left=False), N * N * M),
    "inverse": (lambda: torch.linalg.inv(S), 2 * N**3),
    "lu": (lambda: torch.linalg.lu_factor(S), 2 * N**3 // 3),
    "lu_solve": (
        lambda: torch.linalg.lu_solve(*torch.linalg.lu_factor(S), R.mT),
        2 * N**3 // 3 + 2 * N * N * M,
    ),
    "solve": (lambda: torch.linalg.solve(S, R.mT), 2 * N**3 // 3 + 2 * N * N * M),
    "solve for a vector": (lambda: torch.linalg.solve(S, V), 2 * N**3 // 3 + 2 * N * N),
    "qr": (lambda: torch.linalg.qr(R), 2 * (2 * M * N**2 - 2 * N**3 // 3)),
    "least squares": (lambda: torch.linalg.lstsq(R, R), 2 * M * N**2 - 2 * N**3 // 3 + 4 * M * N * N),
    "real transform": (lambda: torch.fft.rfft(normal(5, 16, seed=5)), 5 * 160),
    "and back": (lambda: torch.fft.irfft(torch.fft.rfft(normal(5, 16, seed=5))), 2 * 5 * 160),
    "complex transform": (lambda: torch.fft.fft(normal(5, 16, seed=5).to(torch.complex128)), 5 * 320),
    "attention": (lambda: F.scaled_dot_product_attention(Q, Q, Q), 2 * 2 * 2 * 2 * K * K * 8),
    "element-wise": (lambda: (A * S + V).exp().sum() * 2.0, 0),
    "of views": (lambda: A.mT.reshape(-1), 0),
}


@pytest.mark.parametrize("name", CASES)
def test_a_kernel_costs_what_its_formula_says(name: str) -> None:
    operation, expected = CASES[name]
    assert flops(operation) == expected


@pytest.mark.parametrize("name", CASES)
def test_torchs_own_counter_finds_the_same_with_these_formulas(name: str) -> None:
    operation, expected = CASES[name]
    with FlopCounterMode(display=False, custom_mapping=dict(FORMULAS)) as counter:
        operation()
    assert counter.get_total_flops() == expected


@pytest.mark.parametrize("name", ["mv", "outer", "eigh", "svd", "cholesky", "triangular, left", "inverse"])
def test_torch_alone_counts_these_as_nothing(name: str) -> None:
    """The day that it counts them, a formula here can go."""
    with FlopCounterMode(display=False) as counter:
        CASES[name][0]()
    assert counter.get_total_flops() == 0


def test_a_backward_pass_is_counted_with_the_way_there() -> None:
    W = A.clone().requires_grad_()

    def there_and_back() -> None:
        (R @ W).sum().backward()

    assert flops(there_and_back) == 2 * (2 * M * N * N)


def test_attention_costs_two_and_a_half_times_as_much_on_the_way_back() -> None:
    q = Q.clone().requires_grad_()
    there = 2 * 2 * 2 * 2 * K * K * 8
    assert flops(lambda: F.scaled_dot_product_attention(q, q, q).sum().backward()) == there + 5 * there // 2


def test_inference_mode_hides_nothing() -> None:
    def infer() -> None:
        with torch.inference_mode():
            F.linear(STACK.clone(), A.clone(), V.clone())

    assert flops(infer) == 3 * 2 * N**3


def test_kernels_are_told_apart() -> None:
    assert flops_by_kind(lambda: torch.linalg.eigh(S)[1] @ R.mT) == {
        "_linalg_eigh": 9 * N**3,
        "mm": 2 * N * N * M,
    }
