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
from curvlab.model.taps import Tape, joined, recording
from curvlab.objective.labels import Backward
from curvlab.objective.losses import Loss, Opaque, loss_of, weighted
from curvlab.objective.products import Chunk, GaussNewton
from curvlab.objective.randomness import Randomness
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import LayerStats, Pass
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.objective import Objective

Sample = tuple[Any, Tensor]  #: inputs and targets, examples leading


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
        self.by_call: list[Sequence[Tensor]] = []  # per chunk and call: rows of output gradients of L
        self.direct: list[Mapping[str, Tensor | None]] = []  # per chunk: parameter gradients of L
        self.vectors: dict[Labels, list[list[Tensor]]] = {kind: [] for kind in needs.layers}

    def add(self, chunk: Chunk) -> None:
        """Forward and the backwards asked for, on one micro-batch."""
        owner, blocks = self.owner, self.blocks
        if not self.taps:
            outputs = owner.model(chunk.inputs)
            self._differentiate(owner._total(outputs, chunk) / self.n, Tape(), retain=False)
            return
        with recording(blocks) as tape:
            outputs = owner.model(chunk.inputs)
        more = bool(self.needs.layers & {Labels.MODEL, Labels.EXACT})
        share = owner._total(outputs, chunk) / self.n
        if self.ctx.step == 0:
            self._verify(share, tape)
        by_call = self._differentiate(share, tape, retain=more)
        for kind in self.needs.layers:
            if kind is Labels.DATA:  # of ℓ_n, not L; and per token where ℓ_n is a mean over tokens
                rows = [g.unsqueeze(0) * (self.n * self.positions**0.5) for g in by_call]
            elif kind is Labels.NONE:
                rows = []
            else:
                rows = self.backward(kind, outputs, chunk, tape)
            self.vectors[kind].append(rows)

    def _differentiate(self, share: Tensor, tape: Tape, *, retain: bool) -> Sequence[Tensor]:
        """Gradients of a chunk's share of L: in every call's output, and in untapped parameters."""
        calls = set(tape.by_block())
        uncalled = [b for b in self.blocks.members if b.name not in calls]
        left = {p: self.blocks.parameters[p] for b in uncalled for p in b.parameters}
        wanted: Any = (*tape.edges, *left.values())  # torch takes both kinds in one call
        grads = torch.autograd.grad(share, wanted, retain_graph=retain, allow_unused=True)
        k = len(tape.calls)
        by_call = [call.grads(g) for call, g in zip(tape.calls, grads[:k], strict=True)]
        self.losses.append(share.detach())
        self.tapes.append(tape)
        self.by_call.append(by_call)
        self.direct.append(dict(zip(left, grads[k:], strict=True)))
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
            rows = Outer(call.grads(g).flatten(0, 1), call.inputs().flatten(0, 1))
            explained[call.block.name] += rows.dense()
            summed[call.block.name] += Outer(rows.left.abs(), rows.right.abs()).dense()
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
            layers[kind] = {name: (self._statistics(x, grads.get(name)),) for name, x in inputs.items()}
        loss = self.losses[0] if len(self.losses) == 1 else torch.stack(self.losses).sum()
        terms = self.owner.terms
        return Pass(self.n, loss, gradient, layers, ggn, curvature_examples, self.positions, terms)

    def _statistics(self, x: Float[Tensor, "n s i"], g: Float[Tensor, "v n s o"] | None) -> LayerStats:
        """Statistics whose examples are the loss's.

        A model that flattens its positions before the loss makes an example of each; so are they here.
        """
        n, s = x.shape[:2]
        if n != self.n and n * s == self.n:
            return LayerStats(
                x.flatten(0, 1).unsqueeze(1), None if g is None else g.flatten(1, 2).unsqueeze(2)
            )
        return LayerStats(x, g)

    def _inputs(self) -> dict[str, Float[Tensor, "n s i"]]:
        """Inputs of each tapped block, chunks stacked along n, calls along s."""
        pieces: dict[str, list[Tensor]] = {}
        for tape in self.tapes:
            for name, calls in tape.by_block().items():
                pieces.setdefault(name, []).append(joined([tape.calls[k].inputs() for k in calls]))
        return {name: p[0] if len(p) == 1 else torch.cat(p) for name, p in pieces.items()}

    def _merged(self, chunks: Sequence[Sequence[Tensor]]) -> dict[str, Float[Tensor, "v n s o"]]:
        """Per-call gradient rows of every chunk as one tensor per block."""
        pieces: dict[str, list[Tensor]] = {}
        for tape, rows in zip(self.tapes, chunks, strict=True):
            for name, calls in tape.by_block().items():
                pieces.setdefault(name, []).append(joined([rows[k] for k in calls]))
        return {name: p[0] if len(p) == 1 else torch.cat(p, dim=1) for name, p in pieces.items()}

    def _gradient(self, inputs: Mapping[str, Tensor]) -> BlockVector:
        """∇L: untapped parameters packed, tapped layers as outer products."""
        merged = self._merged([[g.unsqueeze(0) for g in rows] for rows in self.by_call])
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
