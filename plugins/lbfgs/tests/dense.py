"""Small problems, pairs of them, and what BFGS is as dense matrices.  All in float64."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvlab.linalg.cg import CGResult, conjugate_gradients
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.secants import Pairs, Secant, Which
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.testing.problems import DTYPE, normal
from curvlab_lbfgs.inverse import in_two_sweeps, weights
from curvlab_lbfgs.memory import Memory, empty, learn


def layout(n: int) -> BlockLayout:
    """Two blocks, n numbers."""
    return BlockLayout({"w": (n - 2,), "b": (2,)})


def vector(x: Tensor) -> BlockVector:
    return BlockVector(layout(x.numel()), x)


def matrix(n: int, condition: float, seed: int = 0) -> Tensor:
    """Symmetric, with eigenvalues from 1 to ``condition``."""
    Q = torch.linalg.qr(normal(n, n, seed=seed)).Q
    return Q @ torch.diag(torch.logspace(0, torch.tensor(condition).log10(), n, dtype=DTYPE)) @ Q.mT


class Dense(LinearOperator[BlockVector]):
    """A matrix on flat vectors."""

    self_adjoint = True
    psd = True

    def __init__(self, entries: Tensor) -> None:
        self.entries = entries

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return BlockVector(v.layout, self.entries @ v.flat)


def solved(A: Tensor, b: Tensor, iterations: int, pairs: Pairs) -> CGResult:
    """So many iterations of CG, and the pairs it kept."""
    return conjugate_gradients(Dense(A), vector(b), max_iterations=iterations, tolerance=0.0, pairs=pairs)


def conjugate(A: Tensor, m: int, which: Which = Which.LAST, seed: int = 1) -> tuple[Secant, ...]:
    """m pairs of a full run of CG."""
    n = A.shape[0]
    return solved(A, normal(n, seed=seed), n, Pairs(m, which)).secants


def chosen(A: Tensor, m: int, damping: float = 0.0, seed: int = 2) -> tuple[Secant, ...]:
    """m pairs along random directions, which are not conjugate, of A + damping · I."""
    n = A.shape[0]
    steps = [normal(n, seed=seed * 1000 + k) for k in range(m)]
    return tuple(Secant(vector(s), vector(A @ s + damping * s), damping) for s in steps)


def held(pairs: Sequence[Secant], rows: int | None = None) -> Memory:
    """A memory of these pairs."""
    memory = empty(rows or len(pairs), pairs[0].s)
    assert learn(memory, pairs) == len(pairs)
    return memory


def as_matrix(memory: Memory, damping: float = 0.0) -> Tensor:
    """H, column by column."""
    w = weights(memory, damping)
    assert w is not None
    n = memory.rows.shape[2]
    return torch.stack(
        [in_two_sweeps(memory, w, vector(e)).flat for e in torch.eye(n, dtype=memory.rows.dtype)], 1
    )


def bfgs(pairs: Sequence[Secant]) -> Tensor:
    """H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ from γI, pair by pair."""
    s, y = pairs[-1].s.flat, pairs[-1].y.flat
    unit = torch.eye(s.numel(), dtype=s.dtype)
    H = unit * (s @ y / (y @ y))
    for pair in pairs:
        s, y = pair.s.flat, pair.y.flat
        left = unit - torch.outer(s, y) / (s @ y)
        H = left @ H @ left.mT + torch.outer(s, s) / (s @ y)
    return H
