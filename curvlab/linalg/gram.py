"""Gram matrices, of which only half need be computed."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

#: from this dimension on, halving the work is worth several products instead of one
WIDE = 256

#: a Gram of p panels costs (p + 1)/2p of the whole product
PANELS = 6


def gram(X: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b d d"]:
    """``XᵀX``, exactly symmetric.  About ``1.2 n d²`` flops where d is large, ``2 n d²`` where it is not."""
    d = X.shape[-1]
    if d < WIDE:
        return X.mT @ X
    return gram_(X.new_empty(*X.shape[:-2], d, d), 0.0, X, 1.0)


def gram_(
    M: Float[Tensor, "*b d d"], keep: float, X: Float[Tensor, "*b n d"], weight: float
) -> Float[Tensor, "*b d d"]:
    """``M ← keep · M + weight · XᵀX`` for a symmetric M, which stays exactly so.

    Block rows of the upper triangle are computed, and mirrored.  With ``keep = 0`` M may hold anything.
    """
    d = X.shape[-1]
    width = -(-d // PANELS) if d >= WIDE else d
    if M.dim() > 2:
        matrices, rows = M.reshape(-1, d, d), X.reshape(-1, *X.shape[-2:])
        for k in range(len(matrices)):
            gram_(matrices[k], keep, rows[k], weight)
        return M
    for a in range(0, d, width):
        b = min(a + width, d)
        panel = M[a:b, a:]
        torch.addmm(panel, X[:, a:b].mT, X[:, a:], beta=keep, alpha=weight, out=panel)
        if b < d:
            M[b:, a:b] = panel[:, b - a :].mT
    return M


def weighted_gram_(
    M: Float[Tensor, "d d"],
    keep: float,
    X: Float[Tensor, "r d"],
    N: Float[Tensor, "r r"],
    weight: float,
) -> Float[Tensor, "d d"]:
    """``M ← keep · M + weight · Xᵀ N X`` for symmetric M and N; M stays exactly symmetric.

    About ``2 r² d + 1.2 r d²`` flops where d is large.  With ``keep = 0`` M may hold anything.
    """
    d, NX = X.shape[-1], N @ X
    width = -(-d // PANELS) if d >= WIDE else d
    for a in range(0, d, width):
        b = min(a + width, d)
        panel = M[a:b, a:]
        torch.addmm(panel, X[:, a:b].mT, NX[:, a:], beta=keep, alpha=weight, out=panel)
        square = panel[:, : b - a]
        square.copy_((square + square.mT) / 2)
        if b < d:
            M[b:, a:b] = panel[:, b - a :].mT
    return M
