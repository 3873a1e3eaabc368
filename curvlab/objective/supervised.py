"""The objective of supervised learning: a model, a loss, inputs and targets."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.vectors import BlockVector, Outer
from curvlab.model.taps import Tape, by_example, joined, recording
from curvlab.objective.labels import Backward
from curvlab.objective.losses import Loss, Opaque, loss_of, weighted
from curvlab.objective.products import Chunk, GaussNewton
from curvlab.objective.randomness import Randomness
from curvlab.protocols.adapter import total
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import LayerStats, Pass
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.objective import Objective

Sample = tuple[Any, Tensor]  #: inputs and targets, examples leading

#: relative error of a product whose factors torch rounds to 11 bits, as it does for convolutions on a GPU
TF32 = 2.0**-10


class LayerMismatch(UserWarning):
    """A layer's calls do not explain its gradient; curvature sees only the calls."""


class SupervisedObjective(Objective):
    """Mean loss of ``model`` on a gradient sample, a curvature sample and an acceptance sample.

    ``curvature`` and ``acceptance`` default to the gradient sample.  ``micro_batch`` bounds how many
    examples are in memory at once; the results are those of one batch (of a criterion that we do not
    know, if it is a plain mean over examples).  Random layers draw the same numbers in every evaluation
    of one objective.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        inputs: Any,
        targets: Tensor,
        *,
        curvature: Sample | None = None,
        acceptance: Sample | None = None,
        micro_batch: int | None = None,
    ) -> None:
        if micro_batch is not None and micro_batch < 1:
            raise ConfigError(Fault(f"micro_batch = {micro_batch}", hint="give a positive number or None"))
        if micro_batch is not None and isinstance(inputs, (Mapping, tuple)):
            what = f"a {type(inputs).__name__} of inputs cannot be cut"
            raise ConfigError(Fault(f"micro_batch = {micro_batch}: {what}", hint="pass one tensor"))
        if micro_batch is not None and len(inputs) != len(targets):
            what = f"{len(inputs)} inputs and {len(targets)} targets cannot be cut alike"
            raise ConfigError(Fault(f"micro_batch = {micro_batch}: {what}", hint="give targets by example"))
        self.model = model
        self.loss_rule = loss
        self.gradient_sample: Sample = (inputs, targets)
        self.curvature_sample = curvature or self.gradient_sample
        self.acceptance_sample = acceptance or self.gradient_sample
        self.micro_batch = micro_batch
        self.randomness = Randomness(next(model.parameters()).device)

    def __call__(self) -> Float[Tensor, ""]:
        for p in self.model.parameters():
            p.grad = None
        n = self._size(self.gradient_sample)
        value = torch.zeros(())
        with self.randomness.repeated(moving=True):
            for chunk in self._chunks(self.gradient_sample):
                part = self._total(self.model(chunk.inputs), chunk) / n
                part.backward()  # type: ignore[no-untyped-call]
                value = value + part.detach()
        return value

    @torch.no_grad()
    def loss(self, at: Mapping[str, Tensor] | None = None) -> Float[Tensor, ""]:
        n = self._size(self.acceptance_sample)
        values = []
        with self.randomness.repeated():
            for chunk in self._chunks(self.acceptance_sample):
                buffers = {k: b.clone() for k, b in self.model.named_buffers()}
                outputs = functional_call(self.model, {**buffers, **(at or {})}, (chunk.inputs,))
                values.append(self._total(outputs, chunk))
        return torch.stack(values).sum() / n

    def start(self, seen: Pass) -> Float[Tensor, ""]:
        return seen.loss if self.acceptance_sample is self.gradient_sample else self.loss()

    def cast(self, dtype: torch.dtype) -> SupervisedObjective | None:
        def converted(sample: Sample) -> Sample:
            return tuple(t.to(dtype) if torch.is_floating_point(t) else t for t in sample)  # type: ignore[return-value]

        if not isinstance(self.gradient_sample[0], Tensor):
            return None
        gradient = converted(self.gradient_sample)
        other = SupervisedObjective(self.model, self.loss_rule, *gradient, micro_batch=self.micro_batch)
        if self.curvature_sample is not self.gradient_sample:
            other.curvature_sample = converted(self.curvature_sample)
        if self.acceptance_sample is not self.gradient_sample:
            other.acceptance_sample = converted(self.acceptance_sample)
        other.randomness = self.randomness
        return other

    def evaluate(self, needs: Needs, blocks: Blocks, ctx: Context) -> Pass:
        evaluation = _Evaluation(self, needs, blocks, ctx)
        with self.randomness.repeated(moving=True):
            for chunk in self._chunks(self.gradient_sample):
                evaluation.add(chunk)
        ggn = None
        if needs.ggn:
            chunks = list(self._chunks(self.curvature_sample))
            size = self._size(self.curvature_sample)
            ggn = GaussNewton(self.model, blocks, self.loss_rule, chunks, size, self.randomness)
        return evaluation.finish(ggn, self._size(self.curvature_sample))

    # helpers, shared with _Evaluation

    def _size(self, sample: Sample) -> int:
        return int(sample[1].shape[0])

    def _chunks(self, sample: Sample) -> Iterator[Chunk]:
        """The sample in micro-batches, each with the row weights it has in the whole."""
        inputs, targets = sample
        n = self._size(sample)
        weights = self._weights(targets, n)
        size = self.micro_batch or n
        if size >= n:
            yield Chunk(inputs, targets, weights)
            return
        per_example = 1 if isinstance(weights, float) else weights.shape[0] // n
        for start in range(0, n, size):
            stop = min(start + size, n)
            w = weights if isinstance(weights, float) else weights[start * per_example : stop * per_example]
            yield Chunk(inputs[start:stop], targets[start:stop], w)

    @property
    def positions(self) -> int:
        """Loss terms per example, where the loss of one example is their mean; else 1."""
        return self.terms if self.loss_rule.over == "mean" else 1

    @property
    def terms(self) -> int:
        """Loss terms per example; 1 for a criterion that we know nothing about."""
        rule, (_, targets) = self.loss_rule, self.gradient_sample
        if isinstance(rule, Opaque):
            return 1
        return max(1, rule.target_rows(targets).shape[0] // targets.shape[0])

    def _weights(self, targets: Tensor, n: int) -> float | Tensor:
        if isinstance(self.loss_rule, Opaque):
            return 1.0
        like = next(self.model.parameters())
        return self.loss_rule.row_weights(self.loss_rule.target_rows(targets), n, like=like)

    def _total(self, outputs: Tensor, chunk: Chunk) -> Float[Tensor, ""]:
        """Σ over the chunk's examples of ℓ_n."""
        loss = self.loss_rule
        if isinstance(loss, Opaque):
            return loss.mean(outputs, chunk.targets) * chunk.targets.shape[0]
        return weighted(loss.terms(loss.rows(outputs), loss.target_rows(chunk.targets)), chunk.weights)


class _Evaluation:
    """One evaluation under way: chunks are added, then merged into a ``Pass``."""

    def __init__(self, owner: SupervisedObjective, needs: Needs, blocks: Blocks, ctx: Context) -> None:
        self.owner, self.needs, self.blocks, self.ctx = owner, needs, blocks, ctx
        self.n = owner._size(owner.gradient_sample)
        self.taps = bool(needs.layers) or needs.factored
        self.positions = owner.positions
        self.backward = Backward(owner.loss_rule, needs, self.n, ctx.generator)
        self.losses: list[Tensor] = []
        self.tapes: list[Tape] = []
        self.sizes: list[int] = []  # per chunk: examples of the loss
        #: by block: is its gradient formed by autograd, rather than kept as rows?
        self.formed: dict[str, bool] = {}
        self.by_call: list[Sequence[Tensor | None]] = []  # per chunk and call: rows of output gradients of L
        self.direct: list[Mapping[str, Tensor | None]] = []  # per chunk: parameter gradients of L
        self.vectors: dict[Labels, list[Sequence[Tensor | None]]] = {kind: [] for kind in needs.layers}

    def add(self, chunk: Chunk) -> None:
        """Forward and the backwards asked for, on one micro-batch."""
        owner, blocks, examples = self.owner, self.blocks, chunk.targets.shape[0]
        if not self.taps:
            outputs = owner.model(chunk.inputs)
            self._differentiate(owner._total(outputs, chunk) / self.n, Tape(), examples, retain=False)
            return
        with recording(blocks) as tape:
            outputs = owner.model(chunk.inputs)
        more = bool(self.needs.layers & {Labels.MODEL, Labels.EXACT})
        share = owner._total(outputs, chunk) / self.n
        if self.ctx.step == 0:
            self._verify(share, tape)
        self._choose(tape, self.n / examples)
        by_call = self._differentiate(share, tape, examples, retain=more)
        for kind in self.needs.layers:
            rows: Sequence[Tensor | None] = []
            if kind is Labels.DATA:  # of ℓ_n, not L; and per token where ℓ_n is a mean over tokens
                scale = self.n * self.positions**0.5
                rows = [None if g is None else g.unsqueeze(0) * scale for g in by_call]
            elif kind is not Labels.NONE:
                rows = self.backward(kind, outputs, chunk, tape)
            self.vectors[kind].append(rows)

    def _choose(self, tape: Tape, chunks: float) -> None:
        """Whose gradient is cheaper as a matrix: blocks with as many rows as the matrix has, or more.

        ``chunks`` is the batch over this micro-batch.  Autograd forms those, the way it knows for their
        kind of layer: a convolution's takes no patches.
        """
        for name, calls in tape.by_block().items():
            first = tape.calls[calls[0]]
            rows = sum(tape.calls[k].rows for k in calls) * chunks
            self.formed.setdefault(name, first.groups > 1 or rows >= min(first.block.shape))
        if not self.needs.layers:  # then nobody will read them
            tape.calls[:] = [c for c in tape.calls if not self.formed[c.block.name]]

    def _differentiate(
        self, share: Tensor, tape: Tape, examples: int, *, retain: bool
    ) -> Sequence[Tensor | None]:
        """Gradients of a chunk's share of L: in the calls' outputs, and in parameters.

        ``None`` for the calls of a block whose gradient is formed, unless statistics ask for them.
        """
        kept = [not self.formed[c.block.name] for c in tape.calls]
        factored = {c.block.name for c, keep in zip(tape.calls, kept, strict=True) if keep}
        others = [b for b in self.blocks.members if b.name not in factored]
        left = {p: self.blocks.parameters[p] for b in others for p in b.parameters}
        heard = [k for k, keep in enumerate(kept) if keep or Labels.DATA in self.needs.layers]
        wanted: Any = (*(tape.edges[k] for k in heard), *left.values())  # torch takes both kinds in one call
        grads = torch.autograd.grad(share, wanted, retain_graph=retain, allow_unused=True)
        by_call: list[Tensor | None] = [None] * len(tape.calls)
        for k, g in zip(heard, grads, strict=False):
            by_call[k] = tape.calls[k].grads(g)
        self.losses.append(share.detach())
        self.tapes.append(tape)
        self.sizes.append(examples)
        self.by_call.append([g if keep else None for g, keep in zip(by_call, kept, strict=True)])
        self.direct.append(dict(zip(left, grads[len(heard) :], strict=True)))
        return by_call

    def _verify(self, share: Tensor, tape: Tape) -> None:
        """On the first step: do every layer's calls explain its gradient?  If not, stop tapping it."""
        tapped = self.blocks.tapped
        names = [p for b in tapped for p in b.parameters]
        params = [self.blocks.parameters[p] for p in names]
        wanted: Any = (*tape.edges, *params)
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

    def finish(self, ggn: GaussNewton | None, curvature_examples: int) -> Pass:
        """All chunks as one pass."""
        inputs = self._inputs()
        gradient = self._gradient(inputs)
        layers: dict[Labels, dict[str, tuple[LayerStats, ...]]] = {}
        for kind, chunks in self.vectors.items():
            grads = {} if kind is Labels.NONE else self._merged(chunks)
            layers[kind] = {name: (LayerStats(x, grads.get(name)),) for name, x in inputs.items()}
        loss = self.losses[0] if len(self.losses) == 1 else torch.stack(self.losses).sum()
        terms = self.owner.terms
        return Pass(self.n, loss, gradient, layers, ggn, curvature_examples, self.positions, terms)

    def _inputs(self) -> dict[str, Float[Tensor, "n r i"]]:
        """Inputs of each tapped block by the loss's examples, chunks stacked along n, calls along r."""
        pieces: dict[str, list[Tensor]] = {}
        for tape, n in zip(self.tapes, self.sizes, strict=True):
            for name, calls in tape.by_block().items():
                x = joined([tape.calls[k].inputs() for k in calls])
                positions = x.shape[1] // tape.calls[calls[0]].groups
                pieces.setdefault(name, []).append(by_example(x, positions, n))
        return {name: p[0] if len(p) == 1 else torch.cat(p) for name, p in pieces.items()}

    def _merged(self, chunks: Sequence[Sequence[Tensor | None]]) -> dict[str, Float[Tensor, "v n s o"]]:
        """Per-call gradient rows of every chunk as one tensor per block that has any, by example."""
        pieces: dict[str, list[Tensor]] = {}
        for tape, n, rows in zip(self.tapes, self.sizes, chunks, strict=True):
            for name, calls in tape.by_block().items():
                found = [g for g in (rows[k] for k in calls) if g is not None]
                if found:
                    g = joined(found)
                    pieces.setdefault(name, []).append(by_example(g, g.shape[2], n))
        return {name: p[0] if len(p) == 1 else torch.cat(p, dim=1) for name, p in pieces.items()}

    def _gradient(self, inputs: Mapping[str, Tensor]) -> BlockVector:
        """∇L: layers of few rows as outer products, everything else packed."""
        chunks = [[None if g is None else g.unsqueeze(0) for g in rows] for rows in self.by_call]
        merged = self._merged(chunks)
        blocks = self.blocks
        if len(self.direct) == 1 and not merged:
            return blocks.pack(self.direct[0])
        vector = blocks.layout.empty(like=blocks.like.detach())
        for name, slot in blocks.slots(vector).items():
            found = [g for g in (grads.get(name) for grads in self.direct) if g is not None]
            if found:
                slot.copy_(found[0] if len(found) == 1 else torch.stack(found).sum(0))
            elif name in self.direct[0]:
                slot.zero_()
        for name, g in merged.items():
            vector.outers[name] = Outer(g.flatten(0, 2), inputs[name].flatten(0, 1))
        return vector


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


def objective(
    model: nn.Module,
    criterion: object,
    inputs: Any,
    targets: Tensor,
    *,
    reduction: str = "mean",
    micro_batch: int | None = None,
) -> SupervisedObjective:
    """The objective of ``criterion(model(inputs), targets)``, for ``optimizer.step``.

    ``criterion`` is a torch loss module or function, or any callable of outputs and targets; those
    that state their ``reduction`` are believed, ``reduction`` speaks for the others.  The optimizer
    minimises the mean over examples either way.
    """
    return SupervisedObjective(model, loss_of(criterion, reduction), inputs, targets, micro_batch=micro_batch)
