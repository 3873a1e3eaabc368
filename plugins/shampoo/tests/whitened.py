"""The moments of KL-Shampoo as they are written, on dense matrices."""

from __future__ import annotations

import torch
from torch import Tensor

from curvlab.testing.problems import DTYPE
from plugins.shampoo.tests.hand_fed import grams, on_every_axis

DECAY = 0.8


class Whitened:
    """S_n as they are written: a mean of whitened gradients' moments, weights ``decay^age``.

    Bases are those of the part: their signs are free.
    """

    def __init__(self, shape: tuple[int, ...], damping: float) -> None:
        self.dims, self.damping = shape or (1,), damping
        self.each: list[list[Tensor]] = []

    def S(self) -> list[Tensor]:
        weights = [DECAY**age for age in reversed(range(len(self.each)))]
        return [
            sum((w * E[n] for w, E in zip(weights, self.each, strict=True)), torch.zeros(())) / sum(weights)
            for n in range(len(self.dims))
        ]

    def roots(self, bases: list[Tensor]) -> list[Tensor]:
        """``(S_n + (λ + 1/k) avg(S_n))^{-1/2}`` with the diagonal of ``Qᵀ S_n Q`` for its eigenvalues."""
        found, damping = [], self.damping + 1 / len(self.each)
        for S, Q in zip(self.S(), bases, strict=True):
            values = (Q.mT @ S @ Q).diagonal()
            found.append((Q * (values + damping * values.mean()) ** -0.5) @ Q.mT)
        return found

    def see(self, g: Tensor, bases: list[Tensor]) -> None:
        if self.each:
            roots = self.roots(bases)
        else:  # the mean square of an entry, shared by the axes
            share = float(g.square().mean()) ** (-0.5 / len(self.dims))
            roots = [share * torch.eye(d, dtype=DTYPE) for d in self.dims]
        whitened = []
        for n, d in enumerate(self.dims):
            others = [torch.eye(d, dtype=DTYPE) if m == n else R for m, R in enumerate(roots)]
            whitened.append(grams(on_every_axis(g, others))[n] * d / g.numel())
        self.each.append(whitened)
