"""Differentiation under a loss scale: the one place where gradients of a model are asked for.

float16 holds numbers from 6e-8 to 65504.  What flows backward through a model in float16 is therefore
multiplied by a scale first, and what arrives is divided by it, in float32.  Without a scale nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from curvlab.linalg.work import work_dtype

_scale: ContextVar[float] = ContextVar("scale", default=1.0)


@contextmanager
def scaled_by(scale: float) -> Iterator[None]:
    """Inside, ``gradients`` multiplies what flows backward by ``scale``."""
    token = _scale.set(scale)
    try:
        yield
    finally:
        _scale.reset(token)


def gradients(
    outputs: Tensor | Sequence[Tensor], wanted: Sequence[Any], vectors: Any = None, **options: Any
) -> tuple[Any, ...]:
    """``torch.autograd.grad(outputs, wanted, vectors, **options)``, under the loss scale.

    ``wanted`` are tensors or gradient edges.  The result of vectors in halves is then in float32.
    """
    scale = _scale.get()
    if scale == 1.0:
        return torch.autograd.grad(outputs, tuple(wanted), vectors, **options)
    listed = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    given = [None] * len(listed) if vectors is None else [vectors] if isinstance(vectors, Tensor) else vectors
    upward = [
        torch.full_like(t, scale) if v is None else v * scale for t, v in zip(listed, given, strict=True)
    ]
    found = torch.autograd.grad(listed, tuple(wanted), upward, **options)
    return tuple(None if g is None else unscaled(g, scale) for g in found)


def unscaled(g: Tensor, scale: float) -> Tensor:
    """``g / scale``, in float32 or wider."""
    return g.to(work_dtype(g.dtype)) / scale
