"""Blocks of a matrix: its nearest matrix whose chosen blocks hold one magnitude, or zero."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

#: blocks of one magnitude each, with the signs that their entries have; or of zeros
Goal = Literal["unify", "prune"]


@dataclass(frozen=True)
class Tiling:
    """A weight ``[o, …]`` as its matrix ``[o, i]`` in blocks ``height × width``, cut off at the edges."""

    shape: tuple[int, ...]
    height: int
    width: int

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks along both sides."""
        o, i = self._sides
        return math.ceil(o / self.height), math.ceil(i / self.width)

    @property
    def count(self) -> int:
        """How many blocks there are."""
        return math.prod(self.grid)

    def tiles(self, W: Tensor, fill: float = 0.0) -> Float[Tensor, "b e"]:
        """The entries of each block, blocks row by row; ``fill`` where an edge cuts a block short."""
        o, i = self._sides
        (r, c), (h, w) = self.grid, (self.height, self.width)
        padded = F.pad(W.reshape(o, i), (0, c * w - i, 0, r * h - o), value=fill)
        return padded.view(r, h, c, w).transpose(1, 2).reshape(r * c, h * w)

    def matrix(self, tiles: Float[Tensor, "b e"]) -> Tensor:
        """The weight of these blocks."""
        o, i = self._sides
        (r, c), (h, w) = self.grid, (self.height, self.width)
        return tiles.view(r, c, h, w).transpose(1, 2).reshape(r * h, c * w)[:o, :i].reshape(self.shape)

    def inside(self, like: Tensor) -> Float[Tensor, "b e"]:
        """1 for entries of the weight, 0 for what an edge cuts off."""
        return self.tiles(like.new_ones(self.shape))

    @property
    def _sides(self) -> tuple[int, int]:
        return self.shape[0], math.prod(self.shape[1:])


def losses(W: Tensor, tiling: Tiling, goal: Goal) -> Float[Tensor, " b"]:
    """By block, the squared distance between W and W with this block projected."""
    every = torch.ones(tiling.count, dtype=torch.bool, device=W.device)
    return tiling.tiles((W - projected(W, tiling, every, goal)).square()).sum(1)


def chosen(W: Tensor, tiling: Tiling, ratio: float, goal: Goal) -> Bool[Tensor, " b"]:
    """The ``⌊ratio · blocks⌋`` blocks whose projection moves W least; of equal ones, the first."""
    return cheapest([losses(W, tiling, goal)], ratio)[0]


def cheapest(costs: Sequence[Float[Tensor, " b"]], ratio: float) -> list[Bool[Tensor, " b"]]:
    """The ``⌊ratio · blocks⌋`` cheapest of all blocks of several weights, as a mask for each weight.

    If several cost the same, the first ones are taken.
    """
    joined = torch.cat([cost.to(costs[0].device) for cost in costs])
    mask = torch.zeros_like(joined, dtype=torch.bool)
    mask[joined.argsort(stable=True)[: math.floor(ratio * len(joined))]] = True
    parts = torch.split(mask, [len(cost) for cost in costs])
    return [part.to(cost.device) for part, cost in zip(parts, costs, strict=True)]


def projected(
    W: Tensor, tiling: Tiling, mask: Bool[Tensor, " b"], goal: Goal, signs: Tensor | None = None
) -> Tensor:
    """The nearest matrix whose blocks in ``mask`` are of one magnitude with the signs of W, or zero.

    The magnitude of a block is the mean of ``|w|``: least squares for fixed signs.  A zero counts as
    positive. With other ``signs`` σ it is the mean of ``σ w``, or zero if that is negative.
    """
    if goal == "prune":
        unified = torch.zeros_like(tiling.tiles(W))
    else:
        sigma, inside = tiling.tiles(signs_of(W) if signs is None else signs), tiling.inside(W)
        means = (tiling.tiles(W) * sigma * inside).sum(1) / inside.sum(1)
        unified = sigma * means.clamp(min=0.0).unsqueeze(1)
    return tiling.matrix(torch.where(mask.unsqueeze(1), unified, tiling.tiles(W)))


def tangent(G: Tensor, tiling: Tiling, mask: Bool[Tensor, " b"], goal: Goal, signs: Tensor) -> Tensor:
    """The nearest direction to G along which blocks in ``mask`` keep one magnitude with these signs, or zero.

    Linear in G: a block's entries become σ times the mean of ``σ g``.
    """
    tiles = tiling.tiles(G)
    if goal == "prune":
        along = torch.zeros_like(tiles)
    else:
        sigma, inside = tiling.tiles(signs), tiling.inside(G)
        along = sigma * ((tiles * sigma).sum(1) / inside.sum(1)).unsqueeze(1)
    return tiling.matrix(torch.where(mask.unsqueeze(1), along, tiles))


def signs_of(W: Tensor) -> Tensor:
    """1 for entries that are not negative, −1 for the others."""
    return torch.where(W < 0, -1.0, 1.0).to(W.dtype)


def magnitudes(tiling: Tiling, mask: Bool[Tensor, " b"], goal: Goal) -> int:
    """Numbers that a matrix of this form is stored by: one for each chosen block, none if it is zero.

    Signs and the choice of blocks, a bit each, are not counted.
    """
    alone = tiling.inside(torch.ones((), device="cpu"))[~mask.cpu()].sum()
    return int(alone) + (int(mask.sum()) if goal == "unify" else 0)
