"""One evaluation under way: loss, gradient and layer statistics, micro-batch by micro-batch.

What outlives a micro-batch is a sum (loss, gradients that autograd forms) or rows that were asked for
(statistics, gradients that stay factored); no graph does.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.vectors import Outer
from curvlab.model.taps import Tape, by_example, joined, recording
from curvlab.objective.labels import Backward
from curvlab.objective.samples import Chunk, MicroBatches
from curvlab.objective.variance import Spread
from curvlab.protocols.adapter import total
from curvlab.protocols.blocks import Block, Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import LayerStats, Pass
from curvlab.protocols.needs import Labels, Needs

#: relative error of a product whose factors torch rounds to 11 bits, as it does for convolutions on a GPU
TF32 = 2.0**-10

#: rows by block name, one tensor per chunk
Pieces = dict[str, list[Tensor]]
#: positions in a tape of each block's calls
Uses = Mapping[str, Sequence[int]]


class LayerMismatch(UserWarning):
    """A layer's calls do not explain its gradient; curvature sees only the calls."""


class Evaluation:
    """Chunks are added, then merged into a ``Pass``."""

    def __init__(
        self,
        model: nn.Module,
        batches: MicroBatches,
        needs: Needs,
        blocks: Blocks,
        ctx: Context,
        spread: Spread | None = None,
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
        self.gradient = blocks.layout.empty(like=blocks.like.detach())
        self.summed: set[str] = set()  # parameters whose slot holds the gradients that autograd formed so far
        self.inputs: Pieces = defaultdict(list)  # [n, r, i]
        self.outers: Pieces = defaultdict(list)  # [1, n, s, o]: rows of output gradients of L
        self.vectors: dict[Labels, Pieces] = {kind: defaultdict(list) for kind in needs.layers}

    def add(self, chunk: Chunk) -> None:
        """Forward and the backwards asked for, on one micro-batch."""
        rule = self.batches.loss
        if self.needs.layer_examples and self.heard >= self.needs.layer_examples:
            self.listening = frozenset()
        if not (self.listening or self.needs.factored or self.spread is not None):
            outputs = self.model(chunk.inputs)
            self._differentiate(chunk.share(rule, outputs, self.n), Tape(), retain=False)
            return
        with recording(self.blocks) as tape:
            outputs = self.model(chunk.inputs)
        if self.listening and self.blocks.tapped and not tape.calls and _wrapped(self.model):
            raise ConfigError(
                Fault(
                    "no layer was heard when the model was called: torch.compile took it apart without us",
                    hint="make the optimizer before the model's first call, or compile by model.compile()",
                )
            )
        more = bool(self.listening & {Labels.MODEL, Labels.EXACT}) or self.spread is not None
        share = chunk.share(rule, outputs, self.n)
        if self.ctx.step == 0:
            self._verify(share, tape)
        self._choose(tape, self.n / chunk.examples)
        by_call = self._differentiate(share, tape, retain=more)
        uses = tape.by_block()
        inputs = self._inputs(tape, uses, chunk.examples)
        kept = [
            None if g is None or self.formed[c.block.name] else g.unsqueeze(0)
            for c, g in zip(tape.calls, by_call, strict=True)
        ]
        self._keep(self.outers, uses, chunk.examples, kept)
        for kind in self.listening:
            rows: Sequence[Tensor | None] = []
            if kind is Labels.DATA:  # of ℓ_n, not L; and per token where ℓ_n is a mean over tokens
                scale = self.n * self.positions**0.5
                rows = [None if g is None else g.unsqueeze(0) * scale for g in by_call]
            elif kind is not Labels.NONE:
                rows = self.backward(kind, outputs, chunk, tape)
            if rows:
                self._keep(self.vectors[kind], uses, chunk.examples, rows)
        self.heard += chunk.examples if self.listening else 0
        if self.spread is not None:
            each: Pieces = defaultdict(list)
            scaled = [None if g is None else g.unsqueeze(0) * self.n for g in by_call]
            self._keep(each, uses, chunk.examples, scaled)
            self.spread.add(chunk, outputs, {name: (inputs[name], g[0]) for name, (g,) in each.items()})

    def _choose(self, tape: Tape, chunks: float) -> None:
        """Whose gradient is cheaper as a matrix: blocks with as many rows as the matrix has, or more.

        ``chunks`` is the batch over this micro-batch.  Autograd forms those, the way it knows for their
        kind of layer: a convolution's takes no patches.
        """
        for name, calls in tape.by_block().items():
            first = tape.calls[calls[0]]
            rows = sum(tape.calls[k].rows for k in calls) * chunks
            self.formed.setdefault(name, first.groups > 1 or rows >= min(first.block.shape))
        if not self.listening and self.spread is None:  # then nobody will read them
            tape.calls[:] = [c for c in tape.calls if not self.formed[c.block.name]]

    def _differentiate(self, share: Tensor, tape: Tape, *, retain: bool) -> Sequence[Tensor | None]:
        """Gradients of a chunk's share of L: in parameters, and in the calls' outputs, which it returns.

        ``None`` for the calls of a block whose gradient is formed, unless somebody asks for them.
        """
        kept = [not self.formed[c.block.name] for c in tape.calls]
        factored = {c.block.name for c, keep in zip(tape.calls, kept, strict=True) if keep}
        others = [b for b in self.blocks.members if b.name not in factored]
        left = {p: self.blocks.parameters[p] for b in others for p in b.parameters}
        every = Labels.DATA in self.listening or self.spread is not None  # or only those that stay factored?
        heard = [k for k, keep in enumerate(kept) if keep or every]
        wanted: Any = (*(tape.edges[k] for k in heard), *left.values())  # torch takes both kinds in one call
        grads = torch.autograd.grad(share, wanted, retain_graph=retain, allow_unused=True)
        by_call: list[Tensor | None] = [None] * len(tape.calls)
        for k, g in zip(heard, grads, strict=False):
            by_call[k] = tape.calls[k].grads(g)
        self.losses.append(share.detach())
        self._sum(others, dict(zip(left, grads[len(heard) :], strict=True)))
        return by_call

    def _sum(self, blocks: Sequence[Block], grads: Mapping[str, Tensor | None]) -> None:
        """Add gradients of the blocks' parameters to those of the chunks before."""
        for block in blocks:
            for name, slot in self.blocks.split(block, self.gradient[block.name]).items():
                g = grads[name]
                if name not in self.summed:
                    slot.zero_() if g is None else slot.copy_(g)
                    self.summed.add(name)
                elif g is not None:
                    slot.add_(g)

    def _inputs(self, tape: Tape, uses: Uses, examples: int) -> dict[str, Float[Tensor, "n r i"]]:
        """Each tapped block's inputs by the loss's examples, calls stacked along r; kept where asked for."""
        found = {}
        for name, calls in uses.items():
            x = joined([tape.calls[k].inputs() for k in calls])
            positions = x.shape[1] // tape.calls[calls[0]].groups
            found[name] = by_example(x, positions, examples)
            if self.listening or not self.formed[name]:
                self.inputs[name].append(found[name])
        return found

    def _keep(
        self, pieces: Pieces, uses: Uses, examples: int, rows: Sequence[Float[Tensor, "v m t o"] | None]
    ) -> None:
        """Per-call gradient rows as one tensor ``[v, n, s, o]`` per block that has any, by example."""
        for name, calls in uses.items():
            found = [g for g in (rows[k] for k in calls) if g is not None]
            if found:
                g = joined(found)
                pieces[name].append(by_example(g, g.shape[2], examples))

    def _verify(self, share: Tensor, tape: Tape) -> None:
        """On the first step: do every layer's calls explain its gradient?  If not, stop tapping it."""
        tapped = self.blocks.tapped
        names = [p for b in tapped for p in b.parameters]
        params = [self.blocks.parameters[p] for p in names]
        wanted: Any = (*tape.edges, *params)
        if not wanted:  # no layer is tapped
            return
        got = torch.autograd.grad(share, wanted, retain_graph=True, allow_unused=True)
        k = len(tape.calls)
        truth = dict(zip(names, got[k:], strict=True))
        explained = {b.name: share.new_zeros(b.shape) for b in tapped}
        summed = {b.name: share.new_zeros(b.shape) for b in tapped}  # absolute values: rounding acts on these
        for call, g in zip(tape.calls, got[:k], strict=True):
            inputs, rows = call.inputs(), call.grads(g)
            explained[call.block.name] += total(inputs, rows)
            summed[call.block.name] += total(inputs.abs(), rows.abs())
        for block in tapped:
            scale = float(summed[block.name].max())
            for p, mine in self.blocks.split(block, explained[block.name]).items():
                true = truth[p]
                if not _close(mine, torch.zeros_like(mine) if true is None else true, scale):
                    self.blocks.untapped.add(block.name)
        for name in sorted(self.blocks.untapped & {b.name for b in tapped}):
            tape.calls[:] = [c for c in tape.calls if c.block.name != name]
            warnings.warn(
                f'layer "{name}": its calls do not explain its gradient (its weight is also used elsewhere);'
                " it is trained with its true gradient, but curvature never sees it",
                LayerMismatch,
                stacklevel=2,
            )

    def finish(self) -> Pass:
        """All chunks as one pass, without products."""
        inputs = {name: p[0] if len(p) == 1 else torch.cat(p) for name, p in self.inputs.items()}
        self.inputs.clear()
        for name, g in _merged(self.outers).items():
            self._outer(name, Outer(g.flatten(0, 2), inputs[name].flatten(0, 1)))
        layers: dict[Labels, dict[str, tuple[LayerStats, ...]]] = {}
        for kind, pieces in self.vectors.items():
            grads = _merged(pieces)
            layers[kind] = {
                name: (LayerStats(x[: self.heard], grads.get(name)),)
                for name, x in inputs.items()
                if name not in self.blocks.untapped
            }
        loss = self.losses[0] if len(self.losses) == 1 else torch.stack(self.losses).sum()
        terms = self.batches.terms
        return Pass(self.n, loss, self.gradient, layers, positions=self.positions, terms=terms)

    def _outer(self, name: str, outer: Outer) -> None:
        """The gradient of a block whose rows were kept; of every chunk, unless it was untapped half-way."""
        if self.summed.isdisjoint(self.blocks[name].parameters):
            self.gradient.outers[name] = outer
        else:
            self.gradient[name].add_(outer.dense())


def _wrapped(model: nn.Module) -> bool:
    """Whether ``torch.compile`` made it; its class has no public name."""
    return type(model).__name__ == "OptimizedModule"


def _merged(pieces: Pieces) -> dict[str, Float[Tensor, "v n s o"]]:
    """Rows of every chunk as one tensor per block; the pieces are let go."""
    merged = {name: p[0] if len(p) == 1 else torch.cat(p, dim=1) for name, p in pieces.items()}
    pieces.clear()
    return merged


def _close(mine: Tensor, true: Tensor, scale: float) -> bool:
    """Equal up to the rounding of a sum in another order, whose terms' absolute values add up to ``scale``.

    A gradient that is not finite is no evidence either way.
    """
    if not bool(torch.isfinite(true).all()):
        return True
    tolerance = 1e3 * torch.finfo(true.dtype).eps
    if true.is_cuda and true.dtype == torch.float32:
        tolerance = max(tolerance, TF32)
    return torch.allclose(mine, true, rtol=tolerance, atol=tolerance * max(scale, float(true.abs().max())))
