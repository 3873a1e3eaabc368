"""Means over a batch of what a layer computes: inputs, pre-activations, and the loss's slope in them.

One scale for layers at one position and at many.  With ``h = W a`` at each of s positions of n examples:

* ``h̄`` is the mean of h over examples and positions;
* ``slope`` is ``∂L/∂δ`` of a shift δ that is added to h at every position of every example: the *sum* over
  positions of the mean over examples.  It is the gradient in the layer's bias, where there is one.

Between two parameter values, ``Δslope ≈ Γ Δh̄`` with ``Γ = E[Σ_s ∂²ℓ/∂h_s²]``, if second derivatives between
positions are neglected; it is exact where all h move alike and the loss is a sum over positions.  With
``A = E[aaᵀ]``, the mean over examples and positions, ``Γ ⊗ A`` is the layer's curvature in KFAC's expanded
form: one scale, of A a mean and of Γ a sum.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.protocols.evidence import Evaluation, LayerStats


@dataclass(frozen=True)
class Means:
    """h̄ and slope of one block on one batch."""

    h: Float[Tensor, " o"]
    slope: Float[Tensor, " o"]

    def __sub__(self, other: Means) -> Means:
        return Means(self.h - other.h, self.slope - other.slope)


def means_of(terms: tuple[LayerStats, ...], W: Float[Tensor, "o i"], seen: Evaluation) -> Means | None:
    """The means of one block under its matrix W; ``None`` where it was not called.

    With several loss terms h̄ is the mean and the slope the sum, as A and B of their rows are.
    """
    present = [t for t in terms if len(t.inputs)]
    if not present:
        return None
    found = [Means(_pre_activation(t, W), _slope(t, seen, alone=len(terms) == 1, like=W)) for t in present]
    h, slope = (torch.stack([getattr(m, name) for m in found]) for name in ("h", "slope"))
    return Means(h.mean(0), slope.sum(0))


def _pre_activation(term: LayerStats, W: Float[Tensor, "o i"]) -> Float[Tensor, " o"]:
    """W times the mean input; of a layer of k groups, each group's rows of W times its own."""
    a, g = term.inputs, term.grads
    assert isinstance(a, Tensor), "a layer of lookups is refused"
    assert g is not None, "statistics for the data's labels have gradients"
    groups = a.shape[1] // g.shape[2]
    mean = a.to(W.dtype).reshape(-1, groups, a.shape[2]).mean(0)  # [k, i]
    found: Tensor = torch.einsum("kpi,ki->kp", W.reshape(groups, -1, W.shape[1]), mean)
    return found.flatten()


def _slope(term: LayerStats, seen: Evaluation, *, alone: bool, like: Tensor) -> Float[Tensor, " o"]:
    """Rows carry 1/√positions of an averaged loss, and √(rows/n) where a block has rows of its own number."""
    assert term.grads is not None, "statistics for the data's labels have gradients"
    rows = term.grads.shape[1]
    share = (rows / seen.examples) ** 0.5 if alone else 1.0
    scale = float(share / seen.positions**0.5)
    return term.grads[0].to(like.dtype).sum(1).mean(0) * scale
