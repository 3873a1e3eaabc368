"""What operations on members of a structure cost: which there are, and the flops that they spend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from curvlab.linalg.flops import flops_by_kind
from curvlab.protocols.backend import Backend
from curvlab.protocols.structure import Family, Gram, Group
from curvlab.testing.members import LIKE, member
from curvlab.testing.problems import normal
from curvlab.testing.reference import Lapack

Operation = Callable[[], Any]


def operations(family: Family, d: int, rows: int, like: Tensor = LIKE) -> Iterator[tuple[str, Operation]]:
    """Everything that is done to members while a network is trained, by name.

    ``dense``, ``project``, ``member`` and ``eigh`` are left out: a dense matrix is what they are about.
    """
    M, N = member(family, d, 0, like=like), member(family, d, 1, like=like)
    X = normal(rows, d, seed=2).to(like.dtype)
    out = torch.empty_like(X)
    half = like.new_tensor(0.5)
    yield "zeros", lambda: family.zeros(d, like=like)
    yield "eye", lambda: family.eye(d, like=like)
    yield "matmul", lambda: M @ X.mT
    yield "rmatmul", lambda: M.rmatmul(X)
    yield "rmatmul into", lambda: M.rmatmul(X, out)
    yield "shift_", lambda: M.shift_(0.5)
    yield "mean_diagonal", lambda: M.mean_diagonal()
    yield "norm", lambda: M.norm()
    if M.family.linear:
        yield "combine_", lambda: M.combine_(0.5, N, half)
    if isinstance(family, Group):
        G = family.gramian(M)
        yield "congruence", lambda: family.congruence(M, X)
        yield "square", lambda: family.square(M)
        yield "product", lambda: family.product(M, N)
        yield "gramian", lambda: family.gramian(M)
        yield "gramian matmul", lambda: G @ X.mT
        yield "gramian rmatmul", lambda: G.rmatmul(X)


def gram_operations(
    family: Family, d: int, rows: int, backend: Backend | None = None
) -> Iterator[tuple[str, Operation]]:
    """The same of a Gram matrix; the backend is the reference if not given."""
    if isinstance(family, Gram):
        M, X, backend = family.zeros(d, like=LIKE), normal(rows, d, seed=2), backend or Lapack()
        yield "average_", lambda: family.average_(M, 0.5, X, 1.0, backend)
        yield "inverse", lambda: family.inverse(M, 0.5, backend)


#: kernels of Fourier transforms
_TRANSFORMS = ("_fft_r2c", "_fft_c2r", "_fft_c2c")


def counted(operation: Operation) -> tuple[int, int]:
    """Flops of everything in an operation but its Fourier transforms, and of these."""
    by_kind = flops_by_kind(operation)
    transformed = sum(by_kind.get(kind, 0) for kind in _TRANSFORMS)
    return sum(by_kind.values()) - transformed, transformed
