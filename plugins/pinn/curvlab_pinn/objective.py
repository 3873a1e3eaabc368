"""The objective of a PINN: two terms, and layer statistics of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.model.arrangement import Called, arranged
from curvlab.objectives.gradients import gradients
from curvlab.objectives.losses import loss_of
from curvlab.objectives.statistics import Kind, StatisticsBuilder
from curvlab.objectives.supervised import SupervisedObjective
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels, Needs
from curvlab_pinn.jets import Hear, value_channel
from curvlab_pinn.residuals import Residuals

#: one linear layer's call: what it is, its input channels, its output channels
Call = tuple[nn.Linear, Tensor, Tensor]


class PinnObjective(SupervisedObjective):
    """The mean square of ``Residuals`` at points; products and trial losses are those of any loss.

    Layer statistics have one entry per term of the loss, interior and boundary.  The examples of a term are
    its points; a layer is shared by the channels of a jet (the bias is an input of the value alone), and
    ``ℓ_n = ½ r_n²`` of the residual r: "exact" vectors are gradients of r itself, "data" ones r times those,
    and "model" ones ξ times those, ξ ~ N(0, 1).
    """

    model: Residuals

    def evaluate(self, needs: Needs, blocks: Blocks, ctx: Context) -> Evaluation:
        plain = replace(needs, layers=frozenset(), samples=0, factored=False)
        seen = super().evaluate(plain, blocks, ctx)
        if not needs.layers:
            return seen
        points = [chunk.inputs for chunk in self._batches(self.gradient_sample)]
        terms = [self.model.split(p) for p in points]
        found: dict[Labels, dict[str, tuple[LayerStats, ...]]] = {kind: {} for kind in needs.layers}
        for chunks, residual in (
            ([inside for inside, _ in terms], self.model.inside),
            ([on for _, on in terms], self.model.on),
        ):
            some = [c for c in chunks if len(c)] or chunks[:1]  # a term without points is told of, too
            statistics = _statistics(some, residual, needs, blocks, ctx)
            for kind, by_block in statistics.items():
                for name, stats in by_block.items():
                    found[kind][name] = (*found[kind].get(name, ()), stats)
        return replace(seen, layers=found)


def pinn_objective(
    model: Residuals, points: Float[Tensor, "n d+3"], *, micro_batch: int | None = None
) -> PinnObjective:
    """The objective of ``as_rows``."""
    targets = torch.zeros(len(points), 1, dtype=points.dtype, device=points.device)
    return PinnObjective(model, loss_of(nn.MSELoss()), points, targets, micro_batch=micro_batch)


def _statistics(
    chunks: list[Tensor],
    residual: Callable[[Tensor, Hear], Tensor],
    needs: Needs,
    blocks: Blocks,
    ctx: Context,
) -> dict[Labels, dict[str, LayerStats]]:
    """What every layer saw for one term of the loss; examples are its points, positions a jet's channels."""
    of_module = {id(blocks.modules[layer]): b.name for b in blocks.tapped for layer in b.layers}
    pieces: list[tuple[Tensor, dict[str, list[tuple[Tensor, Tensor]]]]] = []
    for points in chunks:
        calls: list[Call] = []
        with torch.enable_grad():
            r = residual(points, _listening(calls))
            found = gradients(r.sum(), [Y for _, _, Y in calls], allow_unused=True)
        rows: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for (module, Z, Y), g in zip(calls, found, strict=True):
            name = of_module.get(id(module))
            if name is None:
                continue
            a = Z.detach()
            if module.bias is not None:
                a = torch.cat([a, value_channel(a).expand(*a.shape[:2], 1)], -1)
            rows[name].append((a, torch.zeros_like(Y) if g is None else g))
        pieces.append((r.detach(), rows))
    residuals = torch.cat([r for r, _ in pieces])
    shares = {kind: _shares(kind, residuals, needs, ctx) for kind in needs.layers}
    builder, start = StatisticsBuilder(ctx.backend.dtypes.rows), 0
    for r, rows in pieces:
        n = len(r)
        for name, uses in rows.items():
            how = arranged(name, [Called((n,), a.shape[:2].numel()) for a, _ in uses], n)
            grads: dict[Kind, list[Tensor]] = {
                kind: [share[:, start : start + n, None, None] * g for _, g in uses]
                for kind, share in shares.items()
                if share is not None
            }
            builder.add(name, how, [a for a, _ in uses], grads)
        start += n
    statistics: dict[Labels, dict[str, LayerStats]] = {kind: {} for kind in needs.layers}
    for name in builder.blocks():
        for kind, stats in builder.take(name).stats(needs.layers, start).items():
            statistics[kind][name] = stats
    return statistics


def _listening(calls: list[Call]) -> Hear:
    """Writes down every call."""

    def hear(layer: nn.Linear, Z: Tensor, Y: Tensor) -> None:
        calls.append((layer, Z, Y))

    return hear


def _shares(kind: Labels, r: Float[Tensor, " n"], needs: Needs, ctx: Context) -> Float[Tensor, "v n"] | None:
    """What gradients of r are multiplied by to be the vectors of one kind; the same for every layer."""
    if kind is Labels.NONE:
        return None
    if kind is Labels.EXACT:
        return torch.ones_like(r).unsqueeze(0)
    if kind is Labels.DATA:
        return r.unsqueeze(0)
    draws = torch.randn(needs.samples, len(r), dtype=r.dtype, device=r.device, generator=ctx.generator)
    scaled: Tensor = draws / needs.samples**0.5
    return scaled
