"""Pairs (s, y) of a symmetric matrix and its images, and the double damping that makes them admissible.

Leading axes ``*k`` are pairs side by side, one for each diagonal block of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: the least cosine between s and y, in units of rounding; below it the sign of sᵀy means nothing
COSINE = 10


@dataclass(frozen=True)
class Pair:
    """``y ≈ Γ s``."""

    s: Float[Tensor, "*k d"]
    y: Float[Tensor, "*k d"]

    @property
    def admissible(self) -> Tensor:
        """By pair, whether sᵀy is positive beyond rounding and ``sᵀs / sᵀy`` a number; on the device."""
        unit = self.normalized()
        sy, size = dot(unit.s, unit.y), _norm(unit.y)
        return torch.isfinite(size) & (sy > self._least * size) & torch.isfinite(1 / sy)

    def normalized(self) -> Pair:
        """The same with ``‖s‖ = 1``: BFGS depends on no common factor, whose square may leave float32."""
        size = _norm(self.s).unsqueeze(-1)
        size = torch.where(size > 0, size, torch.ones_like(size))
        return Pair(self.s / size, self.y / size)

    @property
    def scale(self) -> Float[Tensor, "*k"]:
        """``‖s‖ / ‖y‖``, of y an inverse curvature; 1 where that is not a positive number."""
        found = _norm(self.s) / _norm(self.y)
        return torch.where(torch.isfinite(found) & (found > 0), found, torch.ones_like(found))

    def where(self, admissible: Tensor) -> Pair:
        """The same pairs, zero where they are not admissible."""
        kept = admissible.unsqueeze(-1)
        return Pair(*(torch.where(kept, v, torch.zeros_like(v)) for v in (self.s, self.y)))

    @property
    def _least(self) -> float:
        return COSINE * torch.finfo(self.s.dtype).eps


def dot(x: Float[Tensor, "*k d"], y: Float[Tensor, "*k d"]) -> Float[Tensor, "*k"]:
    """Inner products, pair by pair."""
    return (x * y).sum(-1)


def powell(H: Callable[[Tensor], Tensor], pair: Pair, least: float) -> Pair:
    """Moves s toward ``H y`` until ``sᵀy ≥ least · yᵀH y`` (Powell's damping, of the inverse)."""
    Hy = H(pair.y)
    sy, yHy = dot(pair.s, pair.y), dot(pair.y, Hy)
    short = sy < least * yHy
    share = torch.where(short, (1 - least) * yHy / (yHy - sy), torch.ones_like(sy)).unsqueeze(-1)
    return Pair(share * pair.s + (1 - share) * Hy, pair.y)


def floored(pair: Pair, least: float, *, relative: bool) -> Pair:
    """Moves y toward ``b s`` until ``sᵀy ≥ least · b · sᵀs``; b = 1, or ``‖y‖ / ‖s‖`` if ``relative``.

    The curvature along s is then at least ``least · b``.
    """
    s, y = pair.s, pair.y
    ss, sy = dot(s, s), dot(s, y)
    b = torch.ones_like(ss)
    if relative:
        b = torch.where(ss > 0, _norm(y) / _norm(s), b)
    short = sy < least * b * ss
    share = torch.where(short, (1 - least) * b * ss / (b * ss - sy), torch.ones_like(sy))
    return Pair(s, share.unsqueeze(-1) * y + ((1 - share) * b).unsqueeze(-1) * s)


def double_damped(
    H: Callable[[Tensor], Tensor], pair: Pair, least: float, damping: float, *, relative: bool
) -> Pair:
    """``powell``, then ``floored``: what H learns from (Goldfarb, Ren and Bahamou 2020, section 4)."""
    return floored(powell(H, pair.normalized(), least), damping, relative=relative)


def _norm(x: Float[Tensor, "*k d"]) -> Float[Tensor, "*k"]:
    """Through the largest entry, whose square may leave float32 on either side."""
    largest = x.abs().amax(-1)
    largest = torch.where(largest > 0, largest, torch.ones_like(largest))
    found: Tensor = torch.linalg.vector_norm(x / largest.unsqueeze(-1), dim=-1) * largest
    return found
