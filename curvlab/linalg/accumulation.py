"""Adding a product of factors to a matrix: what momentum does with a gradient that is held as factors."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: a row of float32 that starts where a vector register or a cache line begins, counted in numbers
ALIGNED = 16

#: from so many rows of factors and so many entries on, products into aligned memory save more than the
#: second pass over the matrix costs (measured: 4 % at 128 rows, 10 % at 256; a loss in float64)
ROWS, ENTRIES = 128, 2**18


def accumulate_(
    M: Float[Tensor, "o i"],
    keep: float,
    left: Float[Tensor, "r o"],
    right: Float[Tensor, "r i"],
    weight: float = 1.0,
) -> Float[Tensor, "o i"]:
    """``M ← keep · M + weight · leftᵀ right``; 2·r·o·i flops.

    On a CPU the rows of a layer's block, which are odd with the bias in them, cost a product up to a fifth
    of its time.  A large one is therefore formed in rows of a better length and added in a second pass,
    which takes ``o i`` transient scalars.
    """
    if not _aside(M, left):
        return M.addmm_(left.mT, right, beta=keep, alpha=weight)
    o, i = M.shape
    product = left.new_empty(o, -(-i // ALIGNED) * ALIGNED)[:, :i]
    torch.mm(left.mT, right, out=product)
    if weight == 1.0:
        return torch.add(product, M, alpha=keep, out=M)
    return M.mul_(keep).add_(product, alpha=weight)


def _aside(M: Tensor, left: Tensor) -> bool:
    """Whether the product is better formed beside M."""
    if M.dtype != torch.float32 or M.device.type != "cpu":
        return False
    return M.stride(0) % (ALIGNED // 2) != 0 and len(left) >= ROWS and M.numel() >= ENTRIES
