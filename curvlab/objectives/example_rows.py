"""Rows of the Jacobian that no layer explains, and what rows are weighted with in the gradient.

For a loss ℓ_n whose curvature in the outputs is ``Σ_v s_v s_vᵀ``, the rows of an example are ``s_vᵀ J_n``,
and the numbers r_v with ``∇_f ℓ_n = Σ_v r_v s_v`` are its *residuals*: the loss is locally ``½ Σ_v r_v²``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import jvp, vjp, vmap

from curvlab.errors import ConfigError, Fault
from curvlab.linalg import factorizations
from curvlab.objectives.nested import as_one, each_tensor, tensors_of
from curvlab.objectives.norms import ComposedNorms
from curvlab.objectives.prediction import predicted
from curvlab.objectives.products import outputs_at, plain_kernels
from curvlab.objectives.samples import Chunk
from curvlab.protocols.blocks import Block, Blocks, as_real
from curvlab.protocols.loss import Loss
from curvlab.protocols.needs import Labels
from curvlab.protocols.pieces import cut, whole

#: numbers of a Jacobian that are computed at once
GROUP = 2**24

#: layers that average over examples in training
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def vectors_of(loss: Loss, kind: Labels, outputs: Any, chunk: Chunk) -> list[Any]:
    """What is back-propagated for the rows of a chunk, in the form of what the loss reads.

    For exact labels the columns of the roots of the examples' Hessians, for those of the data the gradients.
    """
    f = each_tensor(Tensor.detach, predicted(loss, outputs))
    if kind is Labels.EXACT:
        return list(loss.hessian_columns(f, chunk.targets, chunk.weights))
    return [_gradients(loss, chunk, f)]


def residuals_of(loss: Loss, kind: Labels, outputs: Any, chunk: Chunk) -> Float[Tensor, "v n"]:
    """The residuals of every example: 1 for labels of the data, the least-squares solution for exact ones."""
    vectors = vectors_of(loss, kind, outputs, chunk)
    if kind is Labels.DATA:
        return next(tensors_of(vectors[0])).new_ones(1, chunk.examples)
    S = torch.stack([_flat(v, chunk.examples) for v in vectors], -1)
    f = each_tensor(Tensor.detach, predicted(loss, outputs))
    g = _flat(_gradients(loss, chunk, f), chunk.examples)
    if S.shape[-1] == 1:
        return ((S[..., 0] * g).sum(1) / S[..., 0].square().sum(1)).unsqueeze(0)
    return factorizations.least_squares(S, g).mT.contiguous()


def rows_of_blocks(
    model: nn.Module,
    loss: Loss,
    vectors: Sequence[Any],
    chunk: Chunk,
    members: Sequence[Block],
    blocks: Blocks,
) -> Mapping[str, Float[Tensor, "v n size"]]:
    """The rows of each block of ``members``, packed as the block is, by reverse mode over single examples.

    Costs a backward pass for each vector, vectorized over examples.  Raises ``ConfigError`` for a model that
    ``torch.func.vmap`` cannot evaluate on single examples, as one with dropout or BatchNorm in training.
    """
    names = {whole(p) for b in members for p in b.parameters}
    at = {n: blocks.parameters[n].detach() for n in names if blocks.parameters[n].requires_grad}
    if not at:
        return {}
    _require_apart(model, members)
    V = torch.stack([_flat(v, chunk.examples) for v in vectors], 1)

    def of_one(at: Mapping[str, Tensor], inputs: Any, V: Tensor) -> dict[str, Tensor]:
        one = each_tensor(lambda t: t.unsqueeze(0), inputs)

        def f(at: Mapping[str, Tensor]) -> Tensor:
            return as_one(predicted(loss, outputs_at(model, at, one)))[0].reshape(-1)

        pull = vjp(f, at)[1]
        found: dict[str, Tensor] = vmap(pull)(V)[0]
        return found

    each = max(1, GROUP // (V.shape[1] * sum(p.numel() for p in at.values())))
    parts: dict[str, list[Tensor]] = {b.name: [] for b in members}
    with plain_kernels(model), torch.no_grad():
        for start in range(0, chunk.examples, each):
            some = slice(start, start + each)
            inputs = each_tensor(lambda t: t[some], chunk.inputs)  # noqa: B023
            try:
                found = vmap(of_one, in_dims=(None, 0, 0))(at, inputs, V[some])
            except RuntimeError as error:
                raise _not_apart(members, str(error)) from error
            for block in members:
                parts[block.name].append(packed_rows(block, blocks, found))
    return {name: torch.cat(rows, 1) for name, rows in parts.items()}


def packed_rows(block: Block, blocks: Blocks, grads: Mapping[str, Tensor]) -> Float[Tensor, "v n size"]:
    """Gradients ``[n, v, …]`` by whole parameter as those of a block, as it packs them."""
    n, v = next(iter(grads.values())).shape[:2]
    columns = []
    for name in block.parameters:
        g, p = grads.get(whole(name)), blocks.parameters[whole(name)]
        flat = p.new_zeros(n * v, *p.shape).detach() if g is None else g.flatten(0, 1)
        if block.reader is None:
            columns.append(as_real(vmap(partial(cut, name))(flat)).reshape(n * v, -1))
        else:
            columns.append(vmap(partial(blocks.matrix, block, name))(flat))
    rows = columns[0] if block.reader is None else torch.cat(columns, -1)
    return rows.reshape(n, v, -1).transpose(0, 1).contiguous()


def second_along(
    model: nn.Module, loss: Loss, at: Mapping[str, Tensor], along: Mapping[str, Tensor], chunk: Chunk
) -> Float[Tensor, "v n"]:
    """Second derivatives of the residuals for exact labels along a direction, by nested forward mode."""

    def f(s: Tensor) -> Tensor:
        moved = {n: p.detach() + s * along[n] if n in along else p.detach() for n, p in at.items()}
        return as_one(predicted(loss, outputs_at(model, moved, chunk.inputs)))[0]

    def slope(s: Tensor) -> Tensor:
        found: Tensor = jvp(f, (s,), (torch.ones_like(s),))[1]
        return found

    zero = next(iter(at.values())).new_zeros(())
    with plain_kernels(model), torch.no_grad():
        outputs = outputs_at(model, {n: p.detach() for n, p in at.items()}, chunk.inputs)
        with ComposedNorms():
            second = jvp(slope, (zero,), (torch.ones_like(zero),))[1]
    columns = vectors_of(loss, Labels.EXACT, outputs, chunk)
    bent = _flat(as_one(predicted(loss, outputs))[1](second), chunk.examples)
    S = torch.stack([_flat(v, chunk.examples) for v in columns], -1)
    return (S.mT @ bent.unsqueeze(-1)).squeeze(-1).mT.contiguous()


def _gradients(loss: Loss, chunk: Chunk, f: Any) -> Any:
    """Gradients of the ℓ_n in what the loss reads, in its form."""
    with torch.enable_grad():
        flat, apart = as_one(f)
        leaf = flat.detach().requires_grad_()
        (g,) = torch.autograd.grad(loss.total(apart(leaf), chunk.targets, chunk.weights), leaf)
    return apart(g)


def _flat(outputs: Any, examples: int) -> Float[Tensor, "n c"]:
    """Outputs as one row for each example."""
    return torch.cat([t.reshape(examples, -1) for t in tensors_of(outputs) if t.is_floating_point()], 1)


def _require_apart(model: nn.Module, members: Sequence[Block]) -> None:
    """Raise ``ConfigError`` for layers that couple examples."""
    for name, module in model.named_modules():
        coupling = isinstance(module, BATCH_NORMS) and (module.training or not module.track_running_stats)
        if coupling:
            raise _not_apart(members, f'"{name}" averages over examples in training')


def _not_apart(members: Sequence[Block], why: str) -> ConfigError:
    names = ", ".join(f'"{b.name}"' for b in members[:3])
    return ConfigError(
        Fault(
            f"gradients of single examples are needed for {names}, which no layer reader explains, and"
            f" cannot be computed: {why}",
            hint="use a model whose examples are independent (no BatchNorm in training, no dropout), or a"
            " method without gradients of single examples, such as kfac",
        )
    )
