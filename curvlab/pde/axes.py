"""Rules for jets under torch functions that act on axes: the same for every channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from curvlab.pde.channels import Channels


def _axis(dim: int) -> int:
    return dim if dim < 0 else dim + 1


def _each(name: str) -> Callable[..., Any]:
    """A torch function of one tensor and an axis."""

    def rule(x: Channels, dim: Any = None, *args: Any, **kwargs: Any) -> Channels:
        if dim is None:
            dim = tuple(range(1 - x.Z.dim(), 0))
        axes = tuple(map(_axis, dim)) if isinstance(dim, (tuple, list)) else _axis(dim)
        return x.like(getattr(torch, name)(x.Z, axes, *args, **kwargs))

    return rule


def _joined(name: str) -> Callable[..., Channels]:
    def rule(tensors: Sequence[Any], dim: int = 0) -> Channels:
        x: Channels = next(t for t in tensors if isinstance(t, Channels))
        parts = [t.Z if isinstance(t, Channels) else _constant(t, x).Z for t in tensors]
        return x.like(getattr(torch, name)(parts, _axis(dim)))

    return rule


def _constant(t: Tensor, x: Channels) -> Channels:
    Z = t.new_zeros(len(x.keys), *t.shape)
    return x.like(torch.cat([t.unsqueeze(0), Z[1:]]))


def _reshape(x: Channels, *shape: Any) -> Channels:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return x.like(x.Z.reshape(len(x.keys), *sizes))


def _flatten(x: Channels, start_dim: int = 0, end_dim: int = -1) -> Channels:
    return x.like(x.Z.flatten(_axis(start_dim), _axis(end_dim)))


def _transpose(x: Channels, dim0: int, dim1: int) -> Channels:
    return x.like(x.Z.transpose(_axis(dim0), _axis(dim1)))


def _unbind(x: Channels, dim: int = 0) -> tuple[Channels, ...]:
    return tuple(x.like(Z) for Z in x.Z.unbind(_axis(dim)))


def _chunk(x: Channels, chunks: int, dim: int = 0) -> tuple[Channels, ...]:
    return tuple(x.like(Z) for Z in x.Z.chunk(chunks, _axis(dim)))


def _split(x: Channels, size: Any, dim: int = 0) -> tuple[Channels, ...]:
    return tuple(x.like(Z) for Z in torch.split(x.Z, size, _axis(dim)))


def _to(x: Channels, *args: Any, **kwargs: Any) -> Channels:
    return x.like(x.Z.to(*args, **kwargs))


#: torch function -> its rule
AXES: dict[str, Callable[..., Any]] = {
    "cat": _joined("cat"),
    "chunk": _chunk,
    "concat": _joined("cat"),
    "concatenate": _joined("cat"),
    "contiguous": lambda x: x,
    "flatten": _flatten,
    "mean": _each("mean"),
    "reshape": _reshape,
    "split": _split,
    "squeeze": _each("squeeze"),
    "stack": _joined("stack"),
    "sum": _each("sum"),
    "to": _to,
    "transpose": _transpose,
    "unbind": _unbind,
    "unsqueeze": _each("unsqueeze"),
    "view": _reshape,
}
