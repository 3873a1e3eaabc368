"""The objective of a PINN: two terms, and layer statistics of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.objectives.losses import loss_of
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
    """What every layer saw for one term of the loss."""
    inputs: dict[str, list[Tensor]] = defaultdict(list)
    grads: dict[str, list[Tensor]] = defaultdict(list)
    values: list[Tensor] = []
    of_module = {id(blocks.modules[layer]): b.name for b in blocks.tapped for layer in b.layers}
    for points in chunks:
        calls: list[Call] = []
        with torch.enable_grad():
            r = residual(points, _listening(calls))
            outputs = [Y for _, _, Y in calls]
            found = torch.autograd.grad(r.sum(), outputs, allow_unused=True)
        values.append(r.detach())
        mine_a: dict[str, list[Tensor]] = defaultdict(list)
        mine_g: dict[str, list[Tensor]] = defaultdict(list)
        for (module, Z, Y), g in zip(calls, found, strict=True):
            name = of_module.get(id(module))
            if name is None:
                continue
            a = Z.detach()
            if module.bias is not None:
                a = torch.cat([a, value_channel(a).expand(*a.shape[:2], 1)], -1)
            mine_a[name].append(a)
            mine_g[name].append(torch.zeros_like(Y) if g is None else g)
        for name in mine_a:  # a layer used twice has twice the channels
            inputs[name].append(torch.cat(mine_a[name], 1))
            grads[name].append(torch.cat(mine_g[name], 1))
    whole = {name: (torch.cat(a), torch.cat(grads[name])) for name, a in inputs.items()}
    statistics: dict[Labels, dict[str, LayerStats]] = {}
    for kind in needs.layers:
        share = _shares(kind, torch.cat(values), needs, ctx)
        statistics[kind] = {
            name: LayerStats(a, None if share is None else share[..., None, None] * g)
            for name, (a, g) in whole.items()
        }
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
