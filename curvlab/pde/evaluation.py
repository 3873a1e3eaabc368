"""One evaluation of a problem under way: loss, gradient and rows of every term, chunk by chunk."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.model.arrangement import Called, arranged
from curvlab.objectives.gradients import gradients
from curvlab.objectives.statistics import Kind, StatisticsBuilder
from curvlab.pde.example_gradients import example_gradients
from curvlab.pde.residuals import Residuals
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.pieces import cut, whole

#: what a layer saw in one call: inputs ``[n, s, i]``, and gradients of each residual ``[q, n, s, o]``;
#: s counts the channels of a jet, and the positions of a point if it has several
Rows = tuple[Float[Tensor, "n s i"], Float[Tensor, "q n s o"]]


@dataclass
class _Term:
    """What was found of one term, chunk by chunk; all of it weighted by the root of the term's weight."""

    residuals: list[Float[Tensor, "q n"]] = field(default_factory=list)
    heard: list[Mapping[str, list[Rows]]] = field(default_factory=list)
    #: gradients of single residuals by block that was not heard, ``[q, n, size]``
    others: list[Mapping[str, Tensor]] = field(default_factory=list)
    #: ``Σ_n r ∂r`` by parameter, as autograd finds it
    formed: dict[str, Tensor] = field(default_factory=dict)

    @property
    def points(self) -> int:
        return sum(r.shape[1] for r in self.residuals)


class TermsEvaluation:
    """Chunks are added, then merged into an ``Evaluation``.

    A chunk costs a forward pass and q backward passes for a term with q residuals a point.  The gradient of a
    layer whose hooks fired is made of its rows; on step 0 it is compared with autograd's.
    """

    def __init__(self, model: Residuals, needs: Needs, blocks: Blocks, ctx: Context) -> None:
        self.model, self.needs, self.blocks, self.ctx = model, needs, blocks, ctx
        self.terms = [_Term() for _ in model.problem.terms]
        self.of_weight = {
            id(blocks.parameters[b.parameters[0]]): b for b in blocks.tapped if _is_affine(b, blocks)
        }
        self.trained = {n: p for n, p in blocks.parameters.items() if p.requires_grad}

    def add(self, rows: Float[Tensor, "k d+c+2"]) -> None:
        """The rows of a micro-batch."""
        for t, part in enumerate(self.model.parts(rows)):
            if len(part):
                self._add(t, part)

    def _add(self, t: int, rows: Tensor) -> None:
        term, root = self.terms[t], self.model.problem.terms[t].weight ** 0.5
        calls: list[tuple[Block, Tensor, Tensor]] = []

        def hear(weight: Tensor, bias: Tensor | None, Z: Tensor, Y: Tensor) -> None:
            block = self.of_weight.get(id(weight))
            if block is not None and self._is_of(bias, block) and Y.requires_grad:
                calls.append((block, Z, Y))

        with torch.enable_grad():
            r = root * self.model.residual(t, rows, hear)
            if not r.requires_grad:
                label = self.model.problem.terms[t].label
                raise ConfigError(Fault(f'the residual of term "{label}" does not depend on the parameters'))
            ends = [Y for *_, Y in calls]
            found = [
                gradients(r[:, k].sum(), ends, allow_unused=True, retain_graph=True)
                for k in range(r.shape[1] if calls else 0)
            ]
            heard = {block.name for block, *_ in calls}
            left = self._left(heard)
            own = gradients(0.5 * r.square().sum(), list(left.values()), allow_unused=True) if left else ()
        for name, g in zip(left, own, strict=True):
            if g is not None:
                term.formed[name] = term.formed[name] + g if name in term.formed else g.detach()
        uses: dict[str, list[Rows]] = defaultdict(list)
        for c, (block, Z, Y) in enumerate(calls):  # a residual may not depend on some of them
            pulled = [torch.zeros_like(Y) if some[c] is None else some[c] for some in found]
            g = torch.stack([t.transpose(0, 1).flatten(1, -2) for t in pulled])  # contiguous, for products
            uses[block.name].append((_with_bias(Z.detach(), block), g))
        term.residuals.append(r.detach().mT)
        term.heard.append(uses)
        if self.needs.every_block:
            others = [b for b in self.blocks.members if b.name not in heard]
            term.others.append(example_gradients(self.model, t, rows, others, self.blocks, root))

    def _is_of(self, bias: Tensor | None, block: Block) -> bool:
        """Whether the bias that a call added is the block's, or the block has none."""
        return len(block.parameters) == 1 or bias is self.blocks.parameters[block.parameters[1]]

    def _left(self, heard: set[str]) -> dict[str, Tensor]:
        """Parameters whose gradient autograd forms: of blocks whose hooks did not fire; on step 0 of all."""
        blocks = [b for b in self.blocks.members if self.ctx.step == 0 or b.name not in heard]
        return {n: self.trained[n] for b in blocks for n in map(whole, b.parameters) if n in self.trained}

    def finish(self) -> Evaluation:
        """All chunks as one evaluation, without products."""
        gradient = self.blocks.layout.zeros(like=self.blocks.like.detach())
        layers: dict[Labels, dict[str, tuple[LayerStats, ...]]] = {kind: {} for kind in self.needs.layers}
        residuals: dict[Labels, tuple[Tensor, ...]] = dict.fromkeys(_weighted(self.needs.layers), ())
        heard = {name for term in self.terms for uses in term.heard for name in uses}
        others = {name for term in self.terms for some in term.others for name in some}
        loss, formed = gradient.flat.new_zeros(()), dict[str, Tensor]()
        for term in self.terms:
            n = max(term.points, 1)
            r = torch.cat(term.residuals, 1) if term.residuals else loss.new_zeros(1, 0)
            loss = loss + 0.5 * r.square().sum() / n
            for name, g in term.formed.items():
                formed[name] = formed[name] + g / n if name in formed else g / n
            for uses, own in zip(term.heard, term.residuals, strict=True):
                for name, rows in uses.items():
                    for a, g in rows:
                        g = (own[:, :, None, None] * g).sum(0)
                        gradient[name].add_(g.flatten(0, 1).mT @ a.flatten(0, 1), alpha=1 / n)
            for kind, by_block in self._statistics(term, r, heard, others).items():
                for name, stats in by_block.items():
                    layers[kind][name] = (*layers[kind].get(name, ()), stats)
                if kind in residuals:
                    residuals[kind] += (r if kind is Labels.EXACT else torch.ones_like(r[:1]),)
        for name, slot in self.blocks.slots(gradient).items():
            if whole(name) in formed and self._block_of(name).name not in heard:
                slot.copy_(cut(name, formed[whole(name)]))
        if self.ctx.step == 0:
            self._require_explained(heard, formed, self.blocks.slots(gradient))
        for block in self.blocks.tapped:
            if block.name not in heard:
                self.blocks.leave(block.name, self._why())
        explained = {whole(p) for name in heard for p in self.blocks[name].parameters}
        return Evaluation(
            sum(term.points for term in self.terms),
            loss,
            gradient,
            layers,
            absent=frozenset(self.blocks.parameters) - explained - set(formed),
            residuals=residuals,
        )

    def _block_of(self, name: str) -> Block:
        return next(b for b in self.blocks.members if name in b.parameters)

    def _why(self) -> str:
        if self.model.reason is None:
            return "its parameters are used in a way that jets do not read"
        return f"derivatives are nested, because jets have no rule for {self.model.reason}"

    def _require_explained(
        self, heard: set[str], formed: Mapping[str, Tensor], slots: Mapping[str, Tensor]
    ) -> None:
        """Raise ``ConfigError`` if a layer is used otherwise than by the recorded calls."""
        for name in heard:
            for p in self.blocks[name].parameters:
                g = formed.get(whole(p))
                found = slots[p]
                expected = torch.zeros_like(found) if g is None else cut(p, g).to(found.dtype)
                room = 1e3 * torch.finfo(found.dtype).eps * float(expected.norm() + found.norm())
                if float((found - expected).norm()) > room * len(self.terms) * 10:
                    raise ConfigError(
                        Fault(
                            f'the gradient of "{p}" is not explained by the calls of its layer: it is also'
                            " used in another way, as in the transform",
                            hint="use the parameter in its layer alone, or a method that reads no layers",
                        )
                    )

    def _statistics(
        self, term: _Term, r: Float[Tensor, "q n"], heard: set[str], others: set[str]
    ) -> dict[Labels, dict[str, LayerStats]]:
        """Rows of one term, by kind of labels and block; a term without points has rows of length 0."""
        kinds, n = self.needs.layers, r.shape[1]
        shares = {kind: self._shares(kind, r) for kind in kinds}
        builder, start = StatisticsBuilder(self.ctx.backend.dtypes.rows), 0
        found: dict[Labels, dict[str, LayerStats]] = {kind: {} for kind in kinds}
        for own, uses in zip(term.residuals, term.heard, strict=True):
            some = slice(start, start + own.shape[1])
            for name, rows in uses.items():
                m = own.shape[1]
                how = arranged(name, [Called((m,), a.shape[:2].numel()) for a, _ in rows], m)
                grads: dict[Kind, list[Tensor]] = {
                    kind: [_mixed(g, shares[kind], some) for _, g in rows] for kind in kinds
                }
                if Labels.NONE in kinds:
                    grads[Labels.NONE] = []
                builder.add(name, how, [a for a, _ in rows], grads)
            start = some.stop
        for name in builder.blocks():
            for kind, stats in builder.take(name).stats(kinds, n).items():
                found[kind][name] = replace(stats, channels=True)
        for kind in kinds:
            for name in others if kind is not Labels.NONE else ():
                if not term.points:
                    nothing = self.blocks.like.detach().new_zeros(1, 0, self.blocks[name].shape.numel())
                    found[kind][name] = LayerStats.flat(nothing)
                    continue
                alone = torch.cat([some[name] for some in term.others], 1)
                found[kind][name] = LayerStats.flat(_mixed(alone, shares[kind], slice(None)))
            for name in heard - set(found[kind]):
                found[kind][name] = self._nothing(name, kind)
        return found

    def _nothing(self, name: str, kind: Labels) -> LayerStats:
        """The statistics of a layer that this term did not use, or that has no points."""
        o, i = self.blocks[name].shape
        empty = self.blocks.like.detach()
        grads = None if kind is Labels.NONE else empty.new_zeros(1, 0, 1, o)
        return LayerStats(empty.new_zeros(0, 1, i), grads, channels=True)

    def _shares(self, kind: Labels, r: Float[Tensor, "q n"]) -> Float[Tensor, "v q n"] | None:
        """What the gradients of q residuals are multiplied by to be v vectors; ``None`` for themselves."""
        if kind is Labels.DATA:
            return r.unsqueeze(0)
        if kind is not Labels.MODEL:
            return None
        shape = (self.needs.samples, *r.shape)
        draws = torch.randn(shape, dtype=r.dtype, device=r.device, generator=self.ctx.generator)
        found: Tensor = draws / self.needs.samples**0.5
        return found


def _weighted(kinds: frozenset[Labels]) -> frozenset[Labels]:
    """Those whose rows are weighted in the gradient by known numbers."""
    return kinds & {Labels.EXACT, Labels.DATA}


def _mixed(g: Float[Tensor, "q n *r"], shares: Float[Tensor, "v q n"] | None, some: slice) -> Tensor:
    """Vectors ``[v, n, …]`` of gradients of q residuals."""
    if shares is None:
        return g
    return torch.einsum("vqn,qn...->vn...", shares[:, :, some], g)


def _with_bias(Z: Float[Tensor, "s n *m i"], block: Block) -> Float[Tensor, "n t j"]:
    """Input channels of every point with the input of the bias: 1 for the value, 0 for derivatives."""
    i, bias = Z.shape[-1], len(block.parameters) - 1
    rows = Z.new_zeros(Z.shape[1], Z.shape[0], *Z.shape[2:-1], i + bias)
    rows[..., :i] = Z.transpose(0, 1)
    if bias:
        rows[:, 0, ..., -1] = 1.0
    return rows.flatten(1, -2)


def _is_affine(block: Block, blocks: Blocks) -> bool:
    """Whether it is a weight ``[o, i]`` and perhaps a bias, whole, as ``F.linear`` takes them."""
    weight = blocks.parameters.get(block.parameters[0])
    if weight is None or weight.dim() != 2 or block.transposed or block.one_hot:
        return False
    columns = weight.shape[1] + len(block.parameters) - 1
    return len(block.parameters) <= 2 and block.shape == torch.Size((weight.shape[0], columns))
