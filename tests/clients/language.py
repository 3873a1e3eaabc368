"""A small Llama with random weights, its token data, and the plain loop over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from tests.clients.small import Optimizer, grouped

VOCABULARY, LENGTH = 24, 7
#: label of a token that no loss counts
IGNORED = -100

Tokens = dict[str, Tensor]


def llama(seed: int = 0) -> nn.Module:
    """One block, all of whose weights but the embedding and the norms are those of ``nn.Linear``."""
    torch.manual_seed(seed)
    shape = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}
    model: nn.Module = LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=16, tie_word_embeddings=False, **shape)
    )
    return model.train()


def sentences(count: int, *, ignored: bool = False) -> list[Tokens]:
    """Sentences of one length; with ``ignored``, the last k mod 3 labels of sentence k do not count."""
    g = torch.Generator().manual_seed(7)
    found = []
    for k, row in enumerate(torch.randint(0, VOCABULARY, (count, LENGTH), generator=g)):
        labels = row.clone()
        if ignored and k % 3:
            labels[-(k % 3) :] = IGNORED
        found.append({"input_ids": row, "labels": labels})
    return found


def stacked(rows: Sequence[Tokens]) -> Tokens:
    """Sentences as one batch."""
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def language_loop(
    model: nn.Module,
    optimizer: Optimizer,
    data: Sequence[Tokens],
    *,
    size: int,
    accumulate: int = 1,
    clip: float | None = None,
    scheduler: Any = None,
) -> None:
    """The plain loop over batches of ``size`` sentences; a step's loss is the mean over all its tokens."""
    batches = [stacked(rows) for rows in grouped(data, size)]
    for group in grouped(batches, accumulate):
        optimizer.zero_grad()
        tokens = sum(int((batch["labels"][:, 1:] != IGNORED).sum()) for batch in group)
        for batch in group:
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1].float().reshape(-1, VOCABULARY)
            targets = batch["labels"][:, 1:].reshape(-1)
            loss = F.cross_entropy(logits, targets, reduction="sum", ignore_index=IGNORED)
            (loss / tokens).backward()
        if clip is not None:
            norm = nn.utils.clip_grad_norm_(model.parameters(), clip)
            assert norm > clip, "a bound that binds nothing tests nothing"
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
