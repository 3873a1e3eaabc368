"""Which calls of which layers the present gradients of a sharded model are made of (``fully_shard``).

A backward pass accumulates this process's gradient in the parameter with all rows.  There rows and gradient
are compared, as in one process.  Then ``fully_shard`` averages the gradients over processes and adds them to
the shards' ``.grad``, at once or, without synchronization, in a later pass.  So

* a pass is *held* until its gradient is averaged, and ``zero_grad()`` does not touch it, as it does not touch
  the gradient;
* an averaged pass counts as long as the gradient of the shards exists.

Whether a gradient was zeroed in place no process sees by itself, since its rows may be zero, or none at all.
All processes decide it together when the step reads the ledger.
"""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.comparison import is_zero
from curvlab.objectives.examples import Declared
from curvlab.objectives.graph_task import Pass
from curvlab.objectives.hook import Hook
from curvlab.objectives.ledger import MOST_PASSES, Ledger
from curvlab.objectives.ranks import Ranks
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.shards import local


class ShardLedger(Ledger):
    """A ``Ledger`` of a model in shards over ``ranks``; ``drop_cleared`` is called by all of them.

    ``held`` are the passes whose gradient was not averaged yet, and whether their rows were kept;
    ``averaged`` are those in the present ``.grad``.
    ``doubts`` says after how many averaged passes a gradient looked zeroed here, and whether it is zero by
    its rows.
    """

    def __init__(self, blocks: Blocks, declared: Declared, ranks: Ranks, *, tokens: bool = False) -> None:
        self.ranks = ranks
        self.held: dict[str, list[tuple[Pass, bool]]] = defaultdict(list)
        self.averaged: dict[str, list[Pass]] = defaultdict(list)
        self.doubts: dict[str, dict[int, bool]] = defaultdict(dict)
        super().__init__(blocks, declared, tokens=tokens)

    def clear(self) -> None:
        super().clear()
        self.averaged.clear()
        self.doubts.clear()

    def drop_cleared(self) -> None:
        """Forget what was entered for gradients that are gone; enter the rest."""
        for name in list(self.averaged):
            self._drop_if_cleared(name)
        of_ranks = self.ranks.each({name: found for name, found in self.doubts.items() if found})
        for name in set(of_ranks[0]).intersection(*of_ranks[1:]):
            at = set(of_ranks[0][name]).intersection(*(theirs[name] for theirs in of_ranks[1:]))
            cleared = [k for k in at if not all(theirs[name][k] for theirs in of_ranks)]
            self._discard(name, max(cleared, default=0))
        for name, passes in self.averaged.items():
            for taken in passes:
                super()._take(name, taken)
        self.averaged.clear()
        self.doubts.clear()

    # hooks

    def _completed(self, name: str, g: Tensor) -> None:
        if self.active and self.rows and self.blocks.leaf(name).grad is not None and not self.held.get(name):
            _refuse_late(name)
        super()._completed(name, g)

    def _entered(self, name: str, p: Tensor) -> None:
        if self.active and not self.counts:  # it may be averaged in a step that reads rows
            self.held[name].append((Pass([], []), False))
        super()._entered(name, p)

    def _reduced(self, name: str, p: Tensor) -> None:
        """The averaged gradient of a parameter was added to ``.grad``."""
        for taken, rows in self.held.pop(name, ()):
            if self.rows and not rows:
                _refuse_late(name)
            if self.active and self.counts:
                self.averaged[name].append(taken)

    def _listen_to(self, name: str, p: Tensor) -> None:
        leaf = self.blocks.leaf(name)
        leaf.requires_grad_(p.requires_grad)  # a parameter that was unfrozen; fully_shard does so too, later
        super()._listen_to(name, leaf)
        self._keep(p.register_post_accumulate_grad_hook(Hook(self._reduced, name)))  # type: ignore[no-untyped-call]

    # helpers

    def _take(self, name: str, taken: Pass) -> None:
        self.held[name].append((taken, self.rows))
        if len(self.held[name]) + len(self.averaged[name]) > MOST_PASSES:
            self.held.clear()
            self._overflow()

    def _gradient(self, name: str) -> Tensor | None:
        grad = super()._gradient(name)
        return None if grad is None else local(grad)

    def _drop_if_cleared(self, name: str) -> None:
        passes = self.averaged.get(name)
        if not passes:
            return
        grad = self._gradient(name)
        if grad is None:
            self._discard(name, len(passes))
        elif is_zero(grad):
            self.doubts[name][len(passes)] = self._was_zero(name)

    def _was_zero(self, name: str) -> bool:
        arrived = [pair for taken in self.averaged[name] for pair in taken.arrived]
        blocks = self._read(self.weights, name) if arrived else []
        return bool(blocks) and all(
            self.comparison.is_zero_by_rows(
                block,
                [(use, use.outputs(g)) for of, a in arrived if of is block for use, g in a.pairs],
            )
            for block in blocks
        )

    def _discard(self, name: str, count: int) -> None:
        """Forget the first passes in a gradient, which was cleared of them."""
        gone, self.averaged[name] = self.averaged[name][:count], self.averaged[name][count:]
        self.doubts[name] = {k - count: zero for k, zero in self.doubts[name].items() if k > count}
        for block in self.weights.get(name, ()) if gone else ():
            self.accumulated.lost[block.name].update(f for taken in gone for f in taken.forwards)


def _refuse_late(name: str) -> None:
    raise ConfigError(
        Fault(
            f"the gradient of {name} holds a backward pass from before the last step, which was not averaged"
            " then and whose layer statistics were not kept",
            hint="call set_requires_gradient_sync(True) before the last backward pass of a step",
        )
    )
