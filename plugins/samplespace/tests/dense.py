"""The dense Jacobian of residuals, by autograd one entry at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from curvlab.protocols.blocks import Blocks


def jacobian(model: nn.Module, r: Callable[[], Tensor], blocks: Blocks) -> Tensor:
    """Rows of ``r()`` flattened, columns in the order of the blocks' vectors."""
    values, rows = r().reshape(-1), []
    for k in range(len(values)):
        grads = torch.autograd.grad(
            values[k], list(blocks.parameters.values()), retain_graph=True, allow_unused=True
        )
        rows.append(blocks.pack(dict(zip(blocks.parameters, grads, strict=True))).flat.clone())
    return torch.stack(rows)


def pde_residuals(model: nn.Module, rows: Tensor) -> Tensor:
    """All residuals of a problem in the order of a Jacobian's rows; half the sum of squares is the loss."""
    found = []
    for t, part in enumerate(model.parts(rows)):  # type: ignore[operator]
        weight = model.problem.terms[t].weight  # type: ignore[union-attr, index]
        found.append((model.residual(t, part) * (weight / len(part)) ** 0.5).mT.reshape(-1))  # type: ignore[operator]
    return torch.cat(found)
