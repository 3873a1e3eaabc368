"""What processes train of one model in shards (``fully_shard``), and one process of the same model whole.

``python sharded.py RANK SIZE STORE OUT`` is one of the processes.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

import curvlab

STEPS = 4
#: examples of a step, all processes together: shares are equal for 1, 2 and 3 of them
EXAMPLES, LENGTH = 6, 4
WORDS, WIDTH, HEADS = 11, 6, 2


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
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        x = x * self.gain(x).sigmoid() + self.wide(self.narrow(x).tanh() * self.frozen)
        return self.head(x).mT  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Case:
    """A method, and how its loop steps."""

    method: str
    knobs: Mapping[str, Any] = field(default_factory=dict)
    objective: bool = False
    accumulated: bool = False  #: two backward passes a step, the first without synchronization
    clipped: bool = False
    cleared: str = ""  #: what the loop does with the gradients of a pass that is not of the step
    dtype: torch.dtype = torch.float64
    reshard: bool = True
    reduction: str = "mean-tokens"


CASES: dict[str, Case] = {
    "kfac": Case("kfac", {"labels": "data", "weight_decay": 0.1, "momentum": 0.9}),
    "singd": Case("singd", {"structure": "dense", "refresh": 2}),
    "soap": Case("soap"),
    "adamw": Case("adamw"),
    "kfac, not resharded": Case("kfac", {"labels": "data"}, reshard=False),
    "kfac, accumulated": Case("kfac", {"labels": "data"}, accumulated=True),
    "singd, accumulated": Case("singd", {"refresh": 1}, accumulated=True),
    "kfac, clipped": Case("kfac", {"labels": "data"}, clipped=True),
    "kfac, zeroed": Case("kfac", {"labels": "data"}, cleared="zero_"),
    "kfac, set to none": Case("kfac", {"labels": "data"}, cleared="none"),
    "kfac, zero_grad": Case("kfac", {"labels": "data"}, cleared="zero_grad"),
    "kfac, zero_grad between": Case("kfac", {"labels": "data"}, cleared="between"),
    "kfac, objective": Case("kfac", {"labels": "exact"}, objective=True),
    "singd, objective": Case("singd", {"refresh": 2}, objective=True),
    "soap, objective": Case("soap", objective=True),
}


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    """The examples of all processes, step by step."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        words = torch.randint(WORDS, (EXAMPLES, LENGTH + 1), generator=generator)
        yield words[:, :-1], words[:, 1:]


def share(t: Tensor) -> Tensor:
    """This process's part of some examples."""
    return t.chunk(dist.get_world_size())[dist.get_rank()] if dist.is_initialized() else t


def model_of(case: Case) -> Gpt:
    """In shards where there are processes."""
    model = Gpt().to(case.dtype)
    if dist.is_initialized():
        for layer in model.layers:
            fully_shard(layer, reshard_after_forward=case.reshard)
        fully_shard(model.narrow)
        fully_shard(model)
    return model


def loss_of(model: nn.Module, words: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(model(words), targets)


def disturb(case: Case, model: nn.Module, optimizer: torch.optim.Optimizer, words: Tensor) -> None:
    """A pass for another purpose, whose gradients are cleared."""
    if case.cleared == "between":  # between forward and backward
        found = model(words)
        optimizer.zero_grad()
        found.square().mean().backward()
        optimizer.zero_grad()
        return
    model(words).square().mean().backward()
    if case.cleared == "zero_grad":
        optimizer.zero_grad(set_to_none=False)
    for p in model.parameters():
        if case.cleared == "zero_" and p.grad is not None:
            p.grad.zero_()
        elif case.cleared == "none":
            p.grad = None


def synchronize(model: nn.Module, on: bool) -> None:
    if dist.is_initialized():
        model.set_requires_gradient_sync(on)  # type: ignore[operator]


def step(case: Case, model: nn.Module, optimizer: Any, words: Tensor, targets: Tensor) -> None:
    """One step on the examples of all processes."""
    words, targets = share(words), share(targets)
    if case.objective:
        optimizer.step(curvlab.objective(model, nn.CrossEntropyLoss(), words, targets))
        return
    if not case.cleared:
        optimizer.zero_grad()
    halves = [(words, targets)]
    if case.accumulated:
        halves = [(words[:1], targets[:1]), (words[1:], targets[1:])]
    for k, (some, theirs) in enumerate(halves):
        synchronize(model, k == len(halves) - 1)
        (loss_of(model, some, theirs) * (len(some) / len(words))).backward()
    if case.clipped:
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    if case.cleared:
        disturb(case, model, optimizer, words)


def whole(t: Tensor) -> Tensor:
    t = t.detach()
    return t.full_tensor() if isinstance(t, DTensor) else t.clone()


def trained(case: Case) -> dict[str, Any]:
    """Parameters after some steps, and what the optimizer holds."""
    model = model_of(case)
    optimizer = curvlab.optimizer(case.method, model, reduction=case.reduction, **case.knobs)
    for words, targets in batches():
        step(case, model, optimizer, words, targets)
    return {
        "theta": {name: whole(p) for name, p in model.named_parameters()},
        "bytes": optimizer.state_bytes(),
        "untapped": sorted(optimizer.blocks.untapped),
    }


def main(rank: int, size: int, store: str, out: str, names: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=60)
    )
    found = {name: trained(CASES[name]) for name in names or CASES}
    torch.save(found, out)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:])
