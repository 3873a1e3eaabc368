"""What power iteration starts from, and how it scales its vectors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

#: angles per index of the vectors that power iteration starts from, beside one that is nearly constant
ANGLES = (1.0, 2.3999632, 0.7548777)
#: how far that one is from constant, as the longest axis of a Gram matrix of non-negative rows nearly is; the
#: constant vector itself is what a softmax's gradients do not see: what is left of it there is rounding
TILT = 0.1


def unit(w: Float[Tensor, "*b k d"]) -> Float[Tensor, "*b k d"]:
    """Rows of length 1, zeros as they are; through the largest entry, whose square may overflow."""
    largest = torch.linalg.vector_norm(w, float("inf"), dim=-1, keepdim=True)
    w = w / largest.clamp_(min=torch.finfo(w.dtype).tiny)
    # with an entry ±1 a row is no shorter than 1, and without one it is zero
    return w.div_(torch.linalg.vector_norm(w, dim=-1, keepdim=True).clamp_(min=1.0))


def probes(d: int, like: Tensor) -> Float[Tensor, "d k"]:
    """The few fixed vectors that power iteration starts from, as columns, in ``like``'s dtype and place."""
    if like.device.type == "cpu" and like.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(_table(d, like.dtype == torch.float64)).mT
    return torch.from_numpy(_table(d, True)).to(like).mT


@lru_cache(maxsize=256)
def _table(d: int, wide: bool) -> Any:
    """Constants, numbers of the program and not of any optimizer: numpy's, row by row in memory.

    Products with few vectors are fastest that way.
    """
    index = torch.arange(d, dtype=torch.float64, device="cpu")
    first = 1.0 + TILT * torch.cos(2.0 * index)
    found = torch.stack([first, *(torch.cos(index * angle) for angle in ANGLES)])
    return (found if wide else found.float()).numpy().copy()
