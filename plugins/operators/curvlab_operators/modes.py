"""Modes: which Fourier coefficients of a real signal a spectral convolution keeps, and where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import product

import torch
from jaxtyping import Int
from torch import Tensor


def count(modes: Sequence[int]) -> int:
    """How many coefficients are kept: m on the last axis, 2m − 1 on each other."""
    *others, last = modes
    return last * torch.Size(2 * m - 1 for m in others).numel()


def wave_numbers(modes: Sequence[int]) -> list[tuple[int, ...]]:
    """The wave numbers of the kept coefficients, in their order: |k| < m; k ≥ 0 on the last axis."""
    *others, last = modes
    return list(product(*(range(1 - m, m) for m in others), range(last)))


def require_room(modes: Sequence[int], grid: Sequence[int]) -> None:
    """Raise ``ValueError`` for a grid that is too coarse: the Nyquist wave number must lie outside."""
    if len(modes) != len(grid) or any(n < 2 * m - 1 for m, n in zip(modes, grid, strict=True)):
        least = " × ".join(str(2 * m - 1) for m in modes)
        found = " × ".join(map(str, grid))
        raise ValueError(
            f"a grid of {found} points is too coarse for modes = {list(modes)}: expected at least {least}."
            " Use fewer modes or a finer grid"
        )


def places(modes: Sequence[int], grid: Sequence[int], device: torch.device) -> Int[Tensor, " k"]:
    """Where they stand in ``rfftn`` of a signal on this grid, flattened; raises ``ValueError`` as above."""
    require_room(modes, grid)
    return torch.tensor(_places(tuple(modes), tuple(grid)), device=device)


@lru_cache(maxsize=64)
def _places(modes: tuple[int, ...], grid: tuple[int, ...]) -> list[int]:
    lengths = (*grid[:-1], grid[-1] // 2 + 1)
    found = []
    for k in wave_numbers(modes):
        place = 0
        for wave, length in zip(k, lengths, strict=True):
            place = place * length + wave % length
        found.append(place)
    return found
