"""What makes the host wait is counted, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from curvlab.testing.dispatch import host_reads, host_syncs, waiting

X = torch.arange(4.0)


WAITS: dict[str, tuple[Callable[[], object], str]] = {
    "item": (lambda: X[0].item(), "_local_scalar_dense"),
    "float": (lambda: float(X.sum()), "_local_scalar_dense"),
    "if": (lambda: 1 if X.sum() > 0 else 0, "_local_scalar_dense"),
    "tolist": (X.tolist, "tolist"),
    "numpy": (X.numpy, "numpy"),
    "cpu": (X.cpu, "cpu"),
    "equal": (lambda: torch.equal(X, X), "equal"),
    "nonzero": (lambda: X.nonzero(), "nonzero"),
    "a mask": (lambda: X[X > 1], "index"),
    "cholesky": (lambda: torch.linalg.cholesky(torch.eye(2)), "_linalg_check_errors"),
}


@pytest.mark.parametrize(("operation", "name"), WAITS.values(), ids=list(WAITS))
def test_each_wait_is_counted_by_its_name(operation: Callable[[], object], name: str) -> None:
    counted = host_syncs(lambda: [operation() for _ in range(3)])
    assert counted[name] == 3
    assert counted.total() == 3
    assert host_reads(operation) == [name]


def test_arithmetic_waits_for_nothing() -> None:
    def work() -> torch.Tensor:
        A = X[:, None] * X + torch.eye(4)
        return torch.linalg.cholesky_ex(A)[0].sum() * torch.where(X > 1, X, 0.0).sum()

    assert host_syncs(work).total() == 0


def test_waits_that_are_allowed_are_not_counted() -> None:
    def work() -> None:
        with waiting():
            float(X.sum())

    assert host_syncs(work).total() == 0
