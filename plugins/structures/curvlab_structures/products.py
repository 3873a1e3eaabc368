"""Matrix products: of small matrices without detours, and into memory that is there already."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def product(A: Float[Tensor, "*b m k"], B: Float[Tensor, "*b k n"]) -> Float[Tensor, "*b m n"]:
    """``A B``, of as many matrices each; ``@`` spends as long on finding that out as on small matrices."""
    if A.dim() == 3:
        return torch.bmm(A, B)
    return A @ B


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
