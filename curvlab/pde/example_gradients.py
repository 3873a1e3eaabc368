"""Gradients of single residuals in parameters that no layer explains: the slow twin of layer statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from curvlab.objectives.example_rows import packed_rows
from curvlab.pde.residuals import Residuals
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.pieces import whole

#: numbers of a Jacobian that are computed at once
GROUP = 2**24


def example_gradients(
    model: Residuals,
    term: int,
    rows: Float[Tensor, "n c"],
    members: Sequence[Block],
    blocks: Blocks,
    scale: float,
) -> Mapping[str, Float[Tensor, "q n size"]]:
    """``scale · ∂r_nq`` of each block of ``members``, packed as the block is, by reverse mode.

    Costs q backward passes, vectorized over points; memory ``q n size``.
    """
    names = {whole(p) for b in members for p in b.parameters}
    at = {n: blocks.parameters[n].detach() for n in names if blocks.parameters[n].requires_grad}
    if not at:
        return {}

    def residual(at: Mapping[str, Tensor], row: Tensor) -> Tensor:
        found: Tensor = functional_call(model, dict(at), (row.unsqueeze(0),), {"term": term})
        return found[0]

    each = max(1, GROUP // sum(p.numel() for p in at.values()))
    chunks: dict[str, list[Tensor]] = {b.name: [] for b in members}
    with torch.no_grad():
        for start in range(0, len(rows), each):
            jacobian = vmap(jacrev(residual), in_dims=(None, 0))(at, rows[start : start + each])
            for block in members:
                chunks[block.name].append(scale * packed_rows(block, blocks, jacobian))
    return {name: torch.cat(found, 1) for name, found in chunks.items()}
