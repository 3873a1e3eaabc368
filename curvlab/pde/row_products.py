"""Gauss-Newton products from the layer statistics of an evaluation, without another pass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels


@dataclass(frozen=True)
class RowProducts(LinearOperator[BlockVector]):
    """``G v = Σ_t 1/n_t Σ_{q,n} j_qn (j_qnᵀ v)`` with ``j_qn = Σ_s g_qns a_nsᵀ`` per layer: G is exact.

    ``layers`` are "exact" statistics of linear layers, by block and term.  A product costs four times the
    multiply-adds of a channel in these layers, for each channel and residual: less than the two backward
    passes of ``GaussNewton``, which it equals.
    """

    layers: Mapping[str, tuple[LayerStats, ...]]

    self_adjoint = True
    psd = True

    @classmethod
    def of(cls, seen: Evaluation, blocks: Blocks) -> RowProducts | None:
        """The products, or ``None`` if "exact" statistics do not explain every block with a gradient."""
        layers = seen.layers.get(Labels.EXACT, {})
        dtype = blocks.like.dtype
        for block in blocks.members:
            terms = layers.get(block.name)
            if terms is None and not seen.absent.issuperset(block.parameters):
                return None
            if any(t.grads is None or t.grads.dtype != dtype for t in terms or ()):
                return None
        return cls(layers) if layers else None

    def __matmul__(self, v: BlockVector) -> BlockVector:
        out = v.zeros_like()
        for t in range(max(map(len, self.layers.values()))):
            own = {name: terms[t] for name, terms in self.layers.items()}
            along = [_along(stats, v[name]) for name, stats in own.items()]
            total = torch.stack(along).sum(0)
            for name, stats in own.items():
                _add_back_(out[name], stats, total)
        return out


def _along(stats: LayerStats, V: Float[Tensor, "o i"]) -> Float[Tensor, "q n"]:
    """``j_qnᵀ v`` of one layer."""
    a, g = stats.inputs, stats.grads
    assert isinstance(a, Tensor)
    assert g is not None
    outputs = (a.flatten(0, 1) @ V.mT).view(len(a), -1)
    return torch.einsum("qnk,nk->qn", g.flatten(2), outputs)


def _add_back_(out: Float[Tensor, "o i"], stats: LayerStats, weights: Float[Tensor, "q n"]) -> None:
    """``out += 1/n Σ_{q,n} weight_qn j_qn``."""
    a, g = stats.inputs, stats.grads
    assert isinstance(a, Tensor)
    assert g is not None
    mixed = torch.einsum("qn,qnso->nso", weights, g)
    out.add_(mixed.flatten(0, 1).mT @ a.flatten(0, 1), alpha=1 / max(len(a), 1))
