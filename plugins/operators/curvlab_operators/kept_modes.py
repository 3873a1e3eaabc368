"""The transform to the kept Fourier coefficients of a signal, and back, which save nothing for derivatives.

torch's own transform of a real signal keeps the signal for the way back, of which it needs the shape alone.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from curvlab_operators import modes as kept


class Analysis(torch.autograd.Function):
    """Coefficients ``[n, c, k]`` of signals ``[n, c, *grid]``, scaled by ``N^-½``."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, modes: tuple[int, ...]) -> Tensor:
        """The kept coefficients of ``rfftn``."""
        with torch.autocast(x.device.type, enabled=False):
            at = kept.places(modes, x.shape[2:], x.device)
            found = torch.fft.rfftn(x, dim=tuple(range(2, x.dim())), norm="ortho")
            chosen: Tensor = found.flatten(2).index_select(2, at)
            return chosen

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the grid and the modes."""
        ctx.grid, ctx.modes = tuple(inputs[0].shape[2:]), inputs[1]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        """The adjoint: the signal of coefficients, of which those with a conjugate count half."""
        return synthesis(g / _conjugates(ctx.modes, g), ctx.grid, ctx.modes), None

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, _: None) -> Tensor:
        """It is linear."""
        return analysis(dx, ctx.modes)


class Synthesis(torch.autograd.Function):
    """Signals ``[n, c, *grid]`` of coefficients ``[n, c, k]``, scaled by ``N^-½``; all others are zero."""

    generate_vmap_rule = True

    @staticmethod
    def forward(y: Tensor, grid: tuple[int, ...], modes: tuple[int, ...]) -> Tensor:
        """``irfftn`` of the coefficients in their places."""
        with torch.autocast(y.device.type, enabled=False):
            half = torch.Size((*grid[:-1], grid[-1] // 2 + 1))
            at = kept.places(modes, grid, y.device)
            n, c, _ = y.shape
            every = y.new_zeros(n, c, half.numel()).index_copy(2, at, y).view(n, c, *half)
            found: Tensor = torch.fft.irfftn(every, s=grid, dim=tuple(range(2, 2 + len(grid))), norm="ortho")
            return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Keep the grid and the modes."""
        ctx.grid, ctx.modes = inputs[1:]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """The adjoint: coefficients, of which those with a conjugate count twice."""
        found = analysis(g, ctx.modes)
        return found * _conjugates(ctx.modes, found), None, None

    @staticmethod
    def jvp(ctx: Any, dy: Tensor, *_: None) -> Tensor:
        """It is linear."""
        return synthesis(dy, ctx.grid, ctx.modes)


def analysis(x: Float[Tensor, "n c *grid"], modes: tuple[int, ...]) -> Complex[Tensor, "n c k"]:
    """The kept coefficients of signals; raises ``ValueError`` for a grid that is too coarse."""
    found: Tensor = Analysis.apply(x, modes)  # type: ignore[no-untyped-call]
    return found


def synthesis(
    y: Complex[Tensor, "n c k"], grid: tuple[int, ...], modes: tuple[int, ...]
) -> Float[Tensor, "n c *grid"]:
    """The signals whose kept coefficients these are."""
    found: Tensor = Synthesis.apply(y, grid, modes)  # type: ignore[no-untyped-call]
    return found


def _conjugates(modes: tuple[int, ...], like: Tensor) -> Float[Tensor, " k"]:
    """How often each coefficient stands in a signal: 2 with its conjugate, 1 where k = 0 on the last axis."""
    once = [1.0 if k[-1] == 0 else 2.0 for k in kept.wave_numbers(modes)]
    return torch.tensor(once, dtype=like.real.dtype, device=like.device)
