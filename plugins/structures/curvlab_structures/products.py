"""Matrix products into memory that is there already, in one pass over it."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def set_product_(
    y: Float[Tensor, "*b m n"], A: Float[Tensor, "*b m k"], B: Float[Tensor, "*b k n"]
) -> Float[Tensor, "*b m n"]:
    """y ← A B; y may be a view."""
    if y.dim() == 2:
        return torch.mm(A, B, out=y)
    if y.dim() == 3:
        return torch.bmm(A, B, out=y)
    return y.copy_(A @ B)


def add_product_(
    y: Float[Tensor, "*b m n"], A: Float[Tensor, "*b m k"], B: Float[Tensor, "*b k n"]
) -> Float[Tensor, "*b m n"]:
    """y ← y + A B; y may be a view."""
    if y.dim() == 2:
        return y.addmm_(A, B)
    if y.dim() == 3:
        return y.baddbmm_(A, B)
    return y.add_(A @ B)
