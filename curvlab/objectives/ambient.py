"""The pass that a plain ``loss.backward()`` loop leaves behind.

The gradient is what stands in ``.grad``; layer statistics are the rows that it is made of (``ledger``).
Several backward passes before a step (gradient accumulation) are one pass over all their examples; the
caller's losses must add up to the loss of them all.

With several processes every one has the rows of all, or of the blocks that it owns, beside the gradient that
DistributedDataParallel has averaged over ranks, whatever their numbers of examples.  With a model in
shards (``fully_shard``) the gradients of a block go to its owner, and each process gets those of its blocks
alone.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.vectors import BlockVector
from curvlab.model.admission import require_dense
from curvlab.model.arrangement import arranged
from curvlab.objectives.entry import Entry
from curvlab.objectives.examples import Declared, Forward, count
from curvlab.objectives.ledger import Ledger
from curvlab.objectives.mismatch import LayerMismatch, mismatch
from curvlab.objectives.ranks import Ranks
from curvlab.objectives.shard_ledger import ShardLedger
from curvlab.objectives.shard_traffic import ShardTraffic
from curvlab.objectives.statistics import Merged, StatisticsBuilder, unaveraged
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.pieces import whole
from curvlab.protocols.shards import local

Reduction = Literal["mean", "sum", "mean-tokens"]

#: the calls of the model that share one loss, and how many examples they have
Batches = dict[int, tuple[list[Forward], int]]


class Ambient:
    """Reads a model that its caller's own loop trains.

    ``examples`` is what the user declares of a call's examples, ``rows`` the dtype of rows, if not
    that of the layer's output.  Raises ``ConfigError`` for an unknown ``reduction``.
    """

    def __init__(
        self,
        blocks: Blocks,
        reduction: Reduction,
        ranks: Ranks | None = None,
        examples: Declared = None,
        rows: torch.dtype | None = None,
        owners: Mapping[str, int] | None = None,
    ) -> None:
        if reduction not in ("mean", "sum", "mean-tokens"):
            raise ConfigError(
                Fault(f"unknown reduction = {reduction!r}", hint='use "mean", "sum" or "mean-tokens"')
            )
        self.blocks, self.reduction, self.ranks, self.stored, self.owners = (
            blocks,
            reduction,
            ranks,
            rows,
            owners,
        )
        self.alike = ranks is None  #: whether gradients were seen to be the same on all ranks
        self.needs = Needs()
        tokens = reduction == "mean-tokens"
        if blocks.shards is None:
            self.ledger = Ledger(blocks, examples, tokens=tokens)
        else:
            assert ranks is not None, "a model in shards has processes"
            self.ledger = ShardLedger(blocks, examples, ranks, tokens=tokens)

    @property
    def counts(self) -> bool:
        """Whether the number of examples enters the step."""
        return self.reduction == "sum" or self.needs.examples or bool(self.needs.layers)

    def listen(self, needs: Needs) -> None:
        """What to keep of the passes before the next step."""
        self.needs = needs
        self.ledger.keep(rows=bool(needs.layers), counts=self.counts)

    def cover(self, blocks: Blocks) -> None:
        """Read more parameters of the same model from now on."""
        self.blocks = blocks
        self.ledger.cover(blocks)

    def clear(self) -> None:
        """Forget everything seen."""
        self.ledger.clear()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Records nothing of what is evaluated inside: the passes of an objective are its own."""
        self.ledger.active = False
        try:
            yield
        finally:
            self.ledger.active = True

    def collect(
        self, loss: Tensor | None, gradient_scale: float = 1.0, loss_scale: float = 1.0
    ) -> Evaluation:
        """The pass that the present gradients are made of; the ledger is empty afterwards.

        ``loss_scale`` is what the caller's loss was multiplied by before ``backward()``, and so every row;
        ``gradient_scale`` what ``.grad`` still carries of it.  Raises ``ConfigError`` if a number of examples
        that is needed is not known, if no layer's calls explain the gradients, for sparse gradients, and if
        several processes have not averaged them (looked at once).
        """
        try:
            return self._collect(loss, gradient_scale, loss_scale)
        finally:
            self.clear()

    def _collect(self, loss: Tensor | None, gradient_scale: float, loss_scale: float) -> Evaluation:
        grads = {n: None if p.grad is None else p.grad.detach() for n, p in self.blocks.parameters.items()}
        for name, grad in grads.items():
            require_dense(name, grad)
        absent = frozenset(n for n, g in grads.items() if g is None)
        value = (
            torch.full((), float("nan"), device=self.blocks.like.device) if loss is None else loss.detach()
        )
        if len(absent) == len(grads) and self.ranks is None:
            return Evaluation(0, value, self.blocks.pack(grads), absent=absent)
        self.ledger.drop_cleared()
        batches = self._batches()
        mine = sum(n for _, n in batches.values())
        of_ranks = [(mine, self._unexplained())]
        if self.ranks is not None:
            of_ranks = self.ranks.each(of_ranks[0])
        total = sum(n for n, _ in of_ranks)
        gradient = self._gradient(grads, absent)
        if gradient_scale != 1.0:
            gradient.scale_(1.0 / gradient_scale)
        if self.reduction == "sum":
            if not all(n for n, _ in of_ranks):
                raise ConfigError(
                    Fault(
                        'reduction = "sum" needs a call of the model before step(), and there was none',
                        hint="call the model itself, so that its examples can be counted",
                    )
                )
            gradient.scale_(len(of_ranks) / total)
        if self.needs.examples and not total and self._any(gradient):
            what = "the number of examples is not known: no backward pass of the model made these gradients"
            raise ConfigError(Fault(what, hint="call the model and loss.backward() before step()"))
        self._require_alike(gradient)
        self._untap(sorted({name for _, names in of_ranks for name in names}))
        seen = self._pass(gradient, value, batches, loss_scale, absent)
        return seen if self.ranks is None else self._together(seen, self.ranks, total)

    def _gradient(self, grads: Mapping[str, Tensor | None], absent: frozenset[str]) -> BlockVector:
        """The gradients as a vector; of a model in shards, those of the blocks that this process owns.

        Raises ``ConfigError`` if processes have gradients of different parameters.
        """
        if self.blocks.shards is None:
            return self.blocks.pack(grads)
        assert self.ranks is not None, "a model in shards has processes"
        assert self.owners is not None, "and owners"
        for rank, theirs in enumerate(self.ranks.each(absent)):
            for name in sorted(theirs ^ absent):
                where = f"rank {self.ranks.rank if name in theirs else rank}"
                raise ConfigError(
                    Fault(
                        f"parameter {name} has a gradient on {where} and not on every other rank",
                        hint="clear gradients on all ranks alike, and call the same modules on all ranks",
                    )
                )
        mine = {n: local(g) for n, g in grads.items() if g is not None}
        own = self.blocks.select(
            [b.name for b in self.blocks.members if self.owners[b.name] == self.ranks.rank]
        )
        return own.pack(ShardTraffic(self.ranks, self.owners).to_owners(self.blocks, mine))

    def _any(self, gradient: BlockVector) -> bool:
        """Whether any number of the gradient is not zero."""
        found = gradient.flat.any().to(torch.int64)
        if self.blocks.shards is not None and self.ranks is not None:
            self.ranks.largest_(found)
        return bool(found)

    def _together(self, mine: Evaluation, ranks: Ranks, examples: int) -> Evaluation:
        loss = ranks.sum_(mine.loss.clone()) / ranks.size
        layers = ranks.joined(mine.layers, self.owners) if self.needs.layers else mine.layers
        return replace(mine, examples=examples, loss=loss, layers=layers)

    def _require_alike(self, gradient: BlockVector) -> None:
        if self.ranks is not None and not self.alike and self.blocks.shards is None:
            hint = "wrap the model in DistributedDataParallel, which averages the gradients over ranks"
            self.ranks.require_same("the gradients", [gradient.flat], hint)
            self.alike = True

    def _batches(self) -> Batches:
        """The losses that the gradients are made of, by identity of their first call."""
        if not self.counts:
            return {}
        alive = {id(f.batch): f.batch for f in self.ledger.accumulated.alive()}
        return {key: (batch, count(batch)) for key, batch in alive.items()}

    def _unexplained(self) -> list[str]:
        return self.ledger.unexplained() if self.ledger.watch else []

    def _untap(self, names: Sequence[str]) -> None:
        """Stop reading blocks whose calls do not explain their gradient.

        Raises ``ConfigError`` if no other block was called.
        """
        if not names:
            return
        if self.needs.layers and not any(self.ledger.accumulated.uses(b) for b in self.blocks.tapped):
            inside = ", ".join(sorted(self.ledger.obstacles))
            raise ConfigError(
                Fault(
                    "the gradients of this step do not come from the recorded calls of the layers"
                    + (f", because the model was called inside {inside}" if inside else ""),
                    hint="call the model on a whole batch, outside of the transform"
                    if inside
                    else "make the optimizer first, then call the model and loss.backward(). Was the model"
                    " compiled and called before? Compile it again, or use model.compile()",
                )
            )
        names = self.blocks.together(names)
        self.blocks.untapped.update(names)
        for name in names:
            warnings.warn(mismatch(name), LayerMismatch, stacklevel=6)

    def _pass(
        self,
        gradient: BlockVector,
        loss: Tensor,
        batches: Batches,
        loss_scale: float,
        absent: frozenset[str],
    ) -> Evaluation:
        n = sum(n for _, n in batches.values())
        if not self.needs.layers:
            return Evaluation(n, loss, gradient, absent=absent)
        uses = {
            b.name: self.ledger.accumulated.uses(b)
            for b in self.blocks.tapped
            if whole(b.parameters[0]) not in absent
        }
        uses = {name: found for name, found in uses.items() if found}
        terms = self._terms(batches) if self.reduction == "mean-tokens" else n
        layers: dict[Labels, dict[str, tuple[LayerStats, ...]]] = {kind: {} for kind in self.needs.layers}
        for name, found in uses.items():
            own = n - sum(batches[key][1] for key in self._lost(name) if key in batches)
            scale = 1.0 if self.reduction == "sum" else unaveraged(own, terms / n)
            rows = self._rows(name, found, batches)
            for kind, stats in rows.stats(layers, own, scale / loss_scale).items():
                layers[kind][name] = (stats,)
        positions = max(1, round(terms / n)) if n else 1
        return Evaluation(n, loss, gradient, layers, positions=positions, terms=positions, absent=absent)

    def _lost(self, name: str) -> set[int]:
        """The losses that this block's gradient was cleared of, while others kept theirs."""
        kept = {id(use.forward.batch) for use in self.ledger.accumulated.uses(self.blocks[name])}
        return {id(f.batch) for f in self.ledger.accumulated.lost.get(name, ())} - kept

    def _rows(self, name: str, uses: Sequence[Entry], batches: Batches) -> Merged:
        """The rows of one block, loss by loss."""
        by_loss: dict[int, list[Entry]] = defaultdict(list)
        for use in uses:
            by_loss[id(use.forward.batch)].append(use)
        builder = StatisticsBuilder(self.stored)
        for key, calls in by_loss.items():
            builder.add(
                name,
                arranged(name, [use.called for use in calls], batches[key][1]),
                [use.inputs() for use in calls],
                {Labels.DATA: [use.grads.unsqueeze(0) for use in calls if use.grads is not None]},
                groups=calls[0].reader.groups(calls[0].module),
            )
        return builder.take(name)

    def _terms(self, batches: Batches) -> int:
        """Terms that the losses are means over, of all examples: rows of the layer nearest to each."""
        found = 0
        for batch, n in batches.values():
            nearest = next((f.nearest for f in batch if f.nearest is not None), None)
            found += n if nearest is None else nearest.rows
        return found
