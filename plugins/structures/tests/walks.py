"""Members that have lost every symmetry, beside the dense matrices they stand for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from curvlab.protocols.structure import Family, Group, Structure
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal


def drawn(family: Family, d: int, seed: int) -> Any:
    """The member whose stored numbers are normal with variance 1/d."""
    M = family.zeros(d, like=torch.zeros(1).double())
    for k, t in enumerate(M.tensors().values()):
        t.copy_(normal(*t.shape, seed=100 * seed + k) / d**0.5)
    return M


def walk(family: Family, d: int, *, seed: int = 0, steps: int = 20) -> tuple[Any, Tensor]:
    """K after ``steps`` updates K ← K (I − β m), the members m not symmetric, and the same of a matrix."""
    assert isinstance(family, Group)
    K, beta = family.eye(d, like=torch.zeros(1).double()), 0.3
    A = torch.eye(d).double()
    for k in range(steps):
        m = drawn(family, d, seed + k)
        K = K.combine_(1.0, family.product(K, m), -beta)
        A = A - beta * A @ m.dense()
    return K, A


def assert_stands_for(K: Structure, A: Tensor, nearest: Callable[[Tensor], Tensor]) -> None:
    """K and all that a group computes from it are those of A; ``nearest`` projects dense matrices."""
    family, d = K.family, K.d
    assert isinstance(family, Group)
    X, M = normal(7, d, seed=1), drawn(family, d, 99)
    G, S = family.gramian(K), X @ A
    sized = {"dimension": 7 * d, "scale": max(1.0, float(A.abs().max()) ** 2) * d * 10}
    for found, expected in (
        (K.dense(), A),
        (K @ X.mT, A @ X.mT),
        (K.rmatmul(X), X @ A),
        (G @ X.mT, A @ A.mT @ X.mT),
        (G.rmatmul(X), X @ A @ A.mT),
        (family.product(K, M).dense(), A @ M.dense()),
        (family.product(M, K).dense(), M.dense() @ A),
        (family.square(K).dense(), nearest(A.mT @ A)),
        (family.congruence(K, X).dense(), nearest(S.mT @ S)),
        (family.project(S.mT @ S).dense(), nearest(S.mT @ S)),
        (family.member(A).dense(), A),
        (K.norm(), A.norm()),
        (K.mean_diagonal(), A.diagonal().mean()),
    ):
        assert_close(found, expected, **sized)


def one_sided_twice(pattern: Tensor) -> Callable[[Tensor], Tensor]:
    """The projection onto matrices with a pattern of zeros: entries with none opposite count twice."""
    weights = pattern.double() * (1.0 + (pattern & ~pattern.mT).double())
    return lambda S: weights * S
