"""What operations on members of a structure cost: which there are, and the flops that they spend."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

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


def _added(y_shape: Any, a_shape: Any, b_shape: Any, **kwargs: Any) -> int:
    """A product, or a stack of them, added in place: torch counts only those that are not."""
    return 2 * int(math.prod(a_shape)) * int(b_shape[-1])


def _transform(x_shape: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    """A real Fourier transform, 5/2 N log₂ N flops, of every row."""
    length = int(max(x_shape[-1], out_shape[-1]))
    return round(2.5 * length * math.log2(max(length, 2))) * int(math.prod(x_shape[:-1]))


def counted(operation: Operation) -> tuple[int, int]:
    """Flops of the matrix products in an operation, in-place ones included, and of its Fourier transforms."""
    aten = torch.ops.aten
    transforms = {aten._fft_r2c: _transform, aten._fft_c2r: _transform}
    mapping = {aten.addmm_: _added, aten.baddbmm_: _added, **transforms}
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        operation()
    by_kind = counter.get_flop_counts().get("Global", {})
    transformed = sum(by_kind.get(kind, 0) for kind in transforms)
    return counter.get_total_flops() - transformed, transformed
