"""A preconditioner at work on one block, fed gradients by hand; products along axes, by einsum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockLayout
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.testing.problems import DTYPE, normal
from curvlab.testing.reference import reference_context

BLOCK = "p"

#: a block with each number of axes; a number has one of length 1
SHAPES = [(), (5,), (4, 6), (3, 2, 4), (2, 3, 2, 4)]


@dataclass
class Fed:
    """One step at a time: the gradient is observed, and it or another vector is preconditioned."""

    part: Preconditioner[Any]
    shape: tuple[int, ...]
    damping: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        layout = BlockLayout({BLOCK: torch.Size(self.shape)})
        self.zero = layout.zeros(like=torch.zeros((), dtype=DTYPE))
        self.state = self.part.init(self.zero, reference_context(self.damping))

    def step(self, g: Tensor | Outer, v: Tensor | None = None) -> Tensor:
        """The update of v, or of g; zero where the part is not ready."""
        vector = self.zero.zeros_like()
        if isinstance(g, Outer):
            vector.outers[BLOCK] = g
        else:
            vector[BLOCK].copy_(g)
        ctx = reference_context(self.damping, step=self.steps)
        self.part.observe(self.state, Evaluation(1, torch.zeros(()), vector.clone().borrow()), ctx)
        self.steps += 1
        if not self.part.ready(self.state):
            return self.zero[BLOCK].clone()
        self.part.refresh(self.state, ctx)
        if v is not None:
            vector = self.zero.zeros_like()
            vector[BLOCK].copy_(v)
        return self.part.apply(self.state, vector.borrow(), ctx).x[BLOCK].clone()


def on_every_axis(g: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    """``Σ M_1[a, α] M_2[b, β] … g[α, β, …]``."""
    dims = tuple(g.shape) or (1,)
    old, new = "abcd"[: len(dims)], "wxyz"[: len(dims)]
    sides = ",".join(f"{n}{o}" for n, o in zip(new, old, strict=True))
    return torch.einsum(f"{sides},{old}->{new}", *matrices, g.reshape(dims)).reshape(g.shape)


def grams(g: Tensor) -> list[Tensor]:
    """``G_(n) G_(n)ᵀ`` for every axis n."""
    dims = tuple(g.shape) or (1,)
    axes = "abcd"[: len(dims)]
    whole = g.reshape(dims)
    return [torch.einsum(f"{axes},{axes.replace(n, 'z')}->{n}z", whole, whole) for n in axes]


def averages(gradients: Sequence[Tensor], decay: float) -> list[Tensor]:
    """Means of the Grams so far, weights ``decay^age`` over their sum."""
    weights = [decay**age for age in reversed(range(len(gradients)))]
    each = [grams(g) for g in gradients]
    return [
        sum((w * E[n] for w, E in zip(weights, each, strict=True)), torch.zeros(())) / sum(weights)
        for n in range(len(each[0]))
    ]


def gradients(shape: tuple[int, ...], count: int = 8) -> list[Tensor]:
    """No white noise: entries of unlike size, and a mean."""
    weight = torch.linspace(0.3, 1.5, math.prod(shape), dtype=DTYPE).reshape(shape)
    return [normal(weight.numel(), seed=k).reshape(shape) * weight + 0.2 for k in range(count)]


def rotation(d: int, seed: int) -> Tensor:
    """A random orthogonal matrix."""
    Q: Tensor = torch.linalg.qr(normal(d, d, seed=seed)).Q
    return Q
