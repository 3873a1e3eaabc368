"""GPT-2 in small, and modules that hold several matrices: what tests train in shards."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

LENGTH, WORDS, WIDTH, HEADS = 4, 11, 6, 2


class Layer(nn.Module):
    """A layer of GPT-2."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 5), nn.Linear(5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in self.qkv(self.before(x)).chunk(3, -1)
        )
        found = scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(found.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.after(x))))


class Gpt(nn.Module):
    """GPT-2 in small: tied embedding and output, positions, and parameters of 1, 3, 5, 6, 11 and 18 rows."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.1)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.norm, self.gain = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 1)
        self.narrow = nn.Linear(WIDTH, 3)
        self.wide = nn.Linear(3, WIDTH)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)
        self.gained, self.checkpointed = True, False
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointed else layer(x)
        x = self.norm(x)
        x = (x * self.gain(x).sigmoid() if self.gained else x) + self.wide(
            self.narrow(x).tanh() * self.frozen
        )
        return self.head(x).mT  # type: ignore[no-any-return]


class Attending(nn.Module):
    """Modules that hold several matrices, each block of them with an owner of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        # without a bias, as that of keys has no gradient but rounding, and grafting would magnify it
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True)
        self.recurrent = nn.LSTM(WIDTH, 5, batch_first=True)
        self.head = nn.Linear(5, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.recurrent(x)[0]).mT  # type: ignore[no-any-return]
