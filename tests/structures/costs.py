"""What an operation on members costs, as torch sees it: the largest tensor it makes, the flops it spends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from curvlab.protocols.structure import Family, Gram, Group
from curvlab.testing.problems import normal
from curvlab.testing.reference import Lapack
from tests.structures.members import LIKE, member

Operation = Callable[[], Any]


def operations(family: Family, d: int, rows: int, like: Tensor = LIKE) -> Iterator[tuple[str, Operation]]:
    """Everything that is done to members while a network is trained, by name.

    ``dense``, ``project``, ``member`` and ``eigh`` are left out: a dense matrix is what they are about.
    """
    M, N = member(family, d, 0, like=like), member(family, d, 1, like=like)
    X = normal(rows, d, seed=2).to(like.dtype)
    out = torch.empty_like(X)
    yield "zeros", lambda: family.zeros(d, like=like)
    yield "eye", lambda: family.eye(d, like=like)
    yield "matmul", lambda: M @ X.mT
    yield "rmatmul", lambda: M.rmatmul(X)
    yield "rmatmul into", lambda: M.rmatmul(X, out)
    yield "shift_", lambda: M.shift_(0.5)
    yield "mean_diagonal", lambda: M.mean_diagonal()
    yield "norm", lambda: M.norm()
    if M.family.linear:
        yield "combine_", lambda: M.combine_(0.5, N, like.new_tensor(0.5))
    if isinstance(family, Group):
        G = family.gramian(M)
        yield "congruence", lambda: family.congruence(M, X)
        yield "square", lambda: family.square(M)
        yield "product", lambda: family.product(M, N)
        yield "gramian", lambda: family.gramian(M)
        yield "gramian matmul", lambda: G @ X.mT
        yield "gramian rmatmul", lambda: G.rmatmul(X)


def gram_operations(family: Family, d: int, rows: int) -> Iterator[tuple[str, Operation]]:
    """The same of a Gram matrix."""
    if isinstance(family, Gram):
        M, X, backend = family.zeros(d, like=LIKE), normal(rows, d, seed=2), Lapack()
        yield "average_", lambda: family.average_(M, 0.5, X, 1.0, backend)
        yield "inverse", lambda: family.inverse(M, 0.5, backend)


class Largest(TorchDispatchMode):
    """How many numbers the largest tensor holds that any operation makes; a view counts as what it views."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for t in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(t, Tensor):
                self.numbers = max(self.numbers, t.untyped_storage().nbytes() // t.element_size())
        return made


def largest(operation: Operation) -> int:
    with Largest() as seen:
        operation()
    return seen.numbers


def _added(y_shape: Any, a_shape: Any, b_shape: Any, **kwargs: Any) -> int:
    """A product, or a stack of them, added in place: torch counts only those that are not."""
    return 2 * math.prod(a_shape) * b_shape[-1]


def _transform(x_shape: Any, *args: Any, out_shape: Any, **kwargs: Any) -> int:
    """A real Fourier transform, 5/2 N log₂ N flops, of every row."""
    length = max(x_shape[-1], out_shape[-1])
    return round(2.5 * length * math.log2(max(length, 2))) * math.prod(x_shape[:-1])


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
