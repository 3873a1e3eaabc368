"""A vision transformer: tokens from patches, pre-norm blocks, the mean of the tokens classified.

Every matrix is a layer of its own that is called as a layer, so that a method of curvature can read
it: attention has three projections rather than one of triple width.  The four matrices of an
attention, and those of all blocks, then share one shape, and what is done to one is done to all in
one batched product; a factor of the gradients has d² entries three times instead of (3d)² once; and
queries, keys and values, whose gradients differ in scale, have one each.  A training step takes as long.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

#: standard deviation of the position embedding at the start: small beside tokens of unit order
POSITION_SCALE = 0.02


class Attention(nn.Module):
    """Multi-head self-attention; ``heads`` divides ``dim``.  ``causal``: no token sees a later one."""

    def __init__(self, dim: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class Block(nn.Module):
    """Attention, then a perceptron of one hidden layer, each on normalized tokens and added to them."""

    def __init__(self, dim: int, heads: int, hidden: int, *, causal: bool = False) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(dim), Attention(dim, heads, causal=causal)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Float[Tensor, "n t d"]) -> Float[Tensor, "n t d"]:
        x = x + self.attention(self.norm1(x))
        out: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return out


class VisionTransformer(nn.Module):
    """Gray images ``[n, 1, side, side]`` to logits; ``patch`` divides ``side``, ``heads`` divides ``dim``.

    ``(side / patch)²`` tokens of width ``dim``, with learned positions; ``depth`` blocks whose
    perceptrons are ``hidden`` wide.  Linear layers and norms start as torch's own do.
    """

    def __init__(
        self, *, side: int, patch: int, dim: int, depth: int, heads: int, hidden: int, classes: int
    ) -> None:
        super().__init__()
        self.cut = nn.Unfold(patch, stride=patch)
        self.embed = nn.Linear(patch**2, dim)
        self.position = nn.Parameter(torch.empty((side // patch) ** 2, dim))
        nn.init.normal_(self.position, std=POSITION_SCALE)
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, classes)

    def forward(self, images: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n c"]:
        tokens = self.embed(self.cut(images).mT) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
