"""A character-level language model: a small transformer decoder."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from curvlab.tasks.vit import POSITION_SCALE, Block


class Gpt(nn.Module):
    """Characters ``[n, t]`` to logits of each next one, ``[n, c, t]``; ``t`` is at most ``context``.

    Embeddings of characters and positions, both small at the start; ``depth`` pre-norm blocks with causal
    attention, whose perceptrons are ``hidden`` wide; a norm and a linear layer to the ``characters``.
    Queries, keys and values are layers of their own, as in the vision transformer.
    """

    def __init__(
        self, *, characters: int, context: int, dim: int, depth: int, heads: int, hidden: int
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(characters, dim)
        self.position = nn.Parameter(torch.empty(context, dim))
        for embedding in (self.embed.weight, self.position):
            nn.init.normal_(embedding, std=POSITION_SCALE)
        self.blocks = nn.Sequential(*(Block(dim, heads, hidden, causal=True) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, characters)

    def forward(self, characters: Int[Tensor, "n t"]) -> Float[Tensor, "n c t"]:
        tokens = self.embed(characters) + self.position[: characters.shape[1]]
        logits: Tensor = self.head(self.norm(self.blocks(tokens)))
        return logits.mT
