"""One evaluation under way: loss, gradient and layer statistics, micro-batch by micro-batch.

What outlives a micro-batch is a sum (loss, gradients that autograd forms) or rows that were asked for
(statistics, gradients that stay factored); no graph does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.outer import Outer
from curvlab.linalg.work import without_autocast
from curvlab.model.taps import Tape, recording
from curvlab.model.uses import Graph, require_no_reentrant
from curvlab.objectives.example_rows import residuals_of, rows_of_blocks, vectors_of
from curvlab.objectives.explained import drop_unexplained
from curvlab.objectives.gradients import gradients
from curvlab.objectives.labels import Backward
from curvlab.objectives.mismatch import LayerMismatch as LayerMismatch
from curvlab.objectives.nested import arguments
from curvlab.objectives.samples import Chunk, MicroBatches
from curvlab.objectives.statistics import Kind, StatisticsBuilder, scaled, unaveraged
from curvlab.objectives.variance import GradientVariance
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.pieces import cut, whole


class EvaluationBuilder:
    """Chunks are added, then merged into an ``Evaluation``."""

    def __init__(
        self,
        model: nn.Module,
        batches: MicroBatches,
        needs: Needs,
        blocks: Blocks,
        ctx: Context,
        spread: GradientVariance | None = None,
    ) -> None:
        self.model, self.batches, self.needs, self.blocks, self.ctx = model, batches, needs, blocks, ctx
        self.spread = spread
        self.n = batches.examples
        #: label kinds whose statistics are still taken: of this micro-batch
        self.listening = needs.layers
        #: examples whose statistics were taken
        self.heard = 0
        self.positions = batches.positions
        self.backward = Backward(batches.loss, needs, self.n, ctx.generator)
        self.losses: list[Tensor] = []
        #: by block: is its gradient formed by autograd, rather than kept as rows?
        self.formed: dict[str, bool] = {}
        self.gradient = blocks.layout.empty(like=blocks.like)
        self.present: set[str] = set()  # parameters to which some chunk gave a gradient
        self.summed: set[str] = set()  # parameters whose slot holds the gradients that autograd formed so far
        self.statistics = StatisticsBuilder(ctx.backend.dtypes.rows)
        #: of label kinds whose rows are weighted by known numbers in the gradient, if every block has rows
        self.weighted = needs.layers & {Labels.EXACT, Labels.DATA} if needs.every_block else frozenset()
        self.residuals: dict[Labels, list[Tensor]] = {kind: [] for kind in self.weighted}
        self.others: dict[Labels, list[Mapping[str, Tensor]]] = {kind: [] for kind in self.weighted}

    def add(self, chunk: Chunk) -> None:
        """Forward and the backwards asked for, on one micro-batch."""
        rule = self.batches.loss
        if self.needs.layer_examples and self.heard >= self.needs.layer_examples:
            self.listening = frozenset()
        if not (self.listening or self.needs.factored or self.spread is not None):
            self._differentiate(chunk.share(rule, self._outputs(chunk), self.n), Tape(), retain=False)
            return
        with recording(self.blocks) as tape:
            outputs = self._outputs(chunk)
        if self.listening and self.blocks.tapped and not tape.calls and _wrapped(self.model):
            raise ConfigError(
                Fault(
                    "the hooks on this model's layers did not fire, because torch.compile compiled the model"
                    " before the optimizer was made",
                    hint="make the optimizer before the model's first call, or compile with model.compile()",
                )
            )
        more = bool(self.listening & {Labels.MODEL, Labels.EXACT}) or self.spread is not None
        share = chunk.share(rule, outputs, self.n)
        with without_autocast(self.gradient.device):  # rows are widened where they are summed, not rounded
            by_call = self._take_rows(chunk, outputs, share, tape, retain=more)
            self._take_example_rows(chunk, outputs, tape)
        self.heard += chunk.examples if self.listening else 0
        if self.spread is not None:
            self._spread(self.spread, chunk, outputs, tape, by_call)

    def _take_rows(
        self, chunk: Chunk, outputs: Any, share: Tensor, tape: Tape, *, retain: bool
    ) -> Sequence[Tensor | None]:
        """Gradients and rows of one micro-batch; returns the gradients at the outputs of calls."""
        self._keep_explained(share, tape)
        tape.drop_transposed()
        self._choose(tape, self.n / chunk.examples)
        by_call = self._differentiate(share, tape, retain=retain)
        rows: dict[Kind, Sequence[Tensor | None]] = {
            "gradient": [
                None if g is None or self.formed[c.block.name] else g.unsqueeze(0)
                for c, g in zip(tape.calls, by_call, strict=True)
            ]
        }
        for kind in self.listening:
            if kind is Labels.DATA:
                scale = unaveraged(self.n, self.positions)
                rows[kind] = [None if g is None else scaled(g.unsqueeze(0), scale) for g in by_call]
            elif kind is not Labels.NONE:
                rows[kind] = self.backward(kind, outputs, chunk, tape)
        arrangements = tape.arranged(chunk.examples)
        for name, calls in tape.by_block().items():
            if not self.listening and self.formed[name]:
                continue
            self.statistics.add(
                name,
                arrangements[name],
                [tape.calls[k].inputs() for k in calls],
                {
                    kind: [g for k in calls if some and (g := some[k]) is not None]
                    for kind, some in rows.items()
                },
                groups=tape.calls[calls[0]].groups,
                heard=bool(self.listening),
            )
        return by_call

    def _take_example_rows(self, chunk: Chunk, outputs: Any, tape: Tape) -> None:
        """Residuals of one micro-batch, and rows of the blocks that no call explains."""
        called = tape.by_block()
        members = [b for b in self.blocks.members if b.name not in called]
        for kind in self.weighted if self.listening else ():
            self.residuals[kind].append(residuals_of(self.batches.loss, kind, outputs, chunk))
            vectors = vectors_of(self.batches.loss, kind, outputs, chunk)
            self.others[kind].append(
                rows_of_blocks(self.model, self.batches.loss, vectors, chunk, members, self.blocks)
            )

    def _spread(
        self,
        spread: GradientVariance,
        chunk: Chunk,
        outputs: Tensor,
        tape: Tape,
        by_call: Sequence[Tensor | None],
    ) -> None:
        """Rows of every tapped block that was called, for the variance of single examples' gradients."""
        found = {}
        for name, how in tape.arranged(chunk.examples).items():
            calls = tape.by_block()[name]
            work, factor = self.gradient.dtype, unaveraged(self.n)
            grads = [g.to(work) * factor for g in (by_call[k] for k in calls) if g is not None]
            if grads:
                found[name] = how.inputs([tape.calls[k].inputs() for k in calls]).to(work), how(grads)
            if not how.certain:
                spread.misread.add(name)
        spread.add(chunk, outputs, found)

    def _outputs(self, chunk: Chunk) -> Any:
        args, kwargs = arguments(chunk.inputs, self.model)
        return self.model(*args, **kwargs)

    def _keep_explained(self, share: Tensor, tape: Tape) -> None:
        """Take calls off the tape whose block is frozen or has a gradient that its calls do not explain."""
        graph = Graph(share)
        require_no_reentrant(graph)
        live = [b for b in self.blocks.tapped if all(self._trained(p) for p in b.parameters)]
        names = {b.name for b in live}
        tape.calls[:] = [c for c in tape.calls if c.block.name in names]
        drop_unexplained(self.blocks, live, graph, share, tape)

    def _trained(self, parameter: str) -> bool:
        return self.blocks.parameters[whole(parameter)].requires_grad

    def _choose(self, tape: Tape, chunks: float) -> None:
        """Whose gradient is cheaper as a matrix: blocks with as many rows as the matrix has, or more.

        ``chunks`` is the batch over this micro-batch.  Autograd forms those, the way it knows for their
        kind of layer: a convolution's takes no patches.
        """
        for name, calls in tape.by_block().items():
            first = tape.calls[calls[0]]
            rows = sum(tape.calls[k].rows for k in calls) * chunks
            sparse = first.groups > 1 or first.block.one_hot or bool(first.block.transposed)
            self.formed.setdefault(name, sparse or rows >= min(first.block.shape))
        if not self.listening and self.spread is None:  # then nobody will read them
            tape.calls[:] = [c for c in tape.calls if not self.formed[c.block.name]]

    def _differentiate(self, share: Tensor, tape: Tape, *, retain: bool) -> Sequence[Tensor | None]:
        """Gradients of a chunk's share of L: in parameters, and in the calls' outputs, which it returns.

        ``None`` for the calls of a block whose gradient is formed, unless they are asked for.
        """
        kept = [not self.formed[c.block.name] for c in tape.calls]
        factored = {c.block.name for c, keep in zip(tape.calls, kept, strict=True) if keep}
        others = [b for b in self.blocks.members if b.name not in factored]
        left = {p: self.blocks.leaf(p) for b in others for p in map(whole, b.parameters) if self._trained(p)}
        every = Labels.DATA in self.listening or self.spread is not None  # or only those that stay factored?
        heard = [k for k, keep in enumerate(kept) if keep or every]
        wanted: Any = (*(tape.edges[k] for k in heard), *left.values())  # torch takes both kinds in one call
        grads = differentiated(share, wanted, retain=retain)
        by_call: list[Tensor | None] = [None] * len(tape.calls)
        for k, g in zip(heard, grads, strict=False):
            by_call[k] = tape.calls[k].grads(g)
            if g is not None:
                self.present.update(map(whole, tape.calls[k].block.parameters))
        self.losses.append(share.detach())
        found = dict(zip(left, grads[len(heard) :], strict=True))
        if any(g is None for g in found.values()):
            require_no_reentrant(Graph(share))
        self.present.update(name for name, g in found.items() if g is not None)
        self._sum(others, found)
        return by_call

    def _sum(self, blocks: Sequence[Block], grads: Mapping[str, Tensor | None]) -> None:
        """Add gradients of the blocks' parameters to those of the chunks before."""
        given = {n: g for n, g in grads.items() if g is not None}
        if len(blocks) == len(self.blocks) and len(given) == len(self.blocks.parameters) and not self.summed:
            slots = self.blocks.slots(self.gradient)  # the most frequent case, in few calls
            torch._foreach_copy_(list(slots.values()), [cut(n, given[whole(n)]) for n in slots])
            self.summed.update(slots)
            return
        for block in blocks:
            for name, slot in self.blocks.split(block, self.gradient[block.name]).items():
                g = grads.get(whole(name))
                if name not in self.summed:
                    slot.zero_() if g is None else slot.copy_(cut(name, g))
                    self.summed.add(name)
                elif g is not None:
                    slot.add_(cut(name, g))

    def finish(self) -> Evaluation:
        """All chunks as one pass, without products."""
        stats: dict[Labels, dict[str, tuple[LayerStats, ...]]] = {kind: {} for kind in self.needs.layers}
        for name in self.statistics.blocks():
            rows = self.statistics.take(name)
            outer = rows.outer()
            if outer is not None:
                self._outer(name, outer.to(self.gradient.dtype))
            if name not in self.blocks.untapped:
                for kind, found in rows.stats(stats, self.heard).items():
                    stats[kind][name] = (found,)
        for kind, parts in self.others.items():
            for name in {name for some in parts for name in some}:
                stats[kind][name] = (LayerStats.flat(torch.cat([some[name] for some in parts], 1)),)
        loss = self.losses[0] if len(self.losses) == 1 else torch.stack(self.losses).sum()
        terms = self.batches.terms
        return Evaluation(
            self.n,
            loss,
            self.gradient,
            stats,
            positions=self.positions,
            terms=terms,
            absent=frozenset(self.blocks.parameters) - self.present,
            residuals={kind: (torch.cat(found, 1),) for kind, found in self.residuals.items() if found},
        )

    def _outer(self, name: str, outer: Outer) -> None:
        """The gradient of a block whose rows were kept; of every chunk, unless it was untapped half-way."""
        if self.summed.isdisjoint(self.blocks[name].parameters):
            self.gradient.outers[name] = outer
        else:
            self.gradient[name].add_(outer.dense())


def _wrapped(model: nn.Module) -> bool:
    """Whether ``torch.compile`` made it; its class has no public name."""
    return type(model).__name__ == "OptimizedModule"


def differentiated(
    share: Tensor, wanted: Sequence[Any], *, retain: bool = False
) -> tuple[Tensor | None, ...]:
    """Gradients of a chunk's share of L; ``None`` where it does not depend on what is wanted.

    Raises ``ConfigError`` for a reentrant checkpoint.
    """
    if not wanted or not share.requires_grad:
        return (None,) * len(wanted)
    try:
        return gradients(share, tuple(wanted), retain_graph=retain, allow_unused=True)
    except RuntimeError:
        require_no_reentrant(Graph(share))  # which autograd.grad refuses in words of its own
        raise
