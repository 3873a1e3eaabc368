"""What the present gradients are made of: calls of the model, calls of layers, and what was compared."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from curvlab.objectives.entry import Entry
from curvlab.objectives.examples import Forward
from curvlab.objectives.graph_task import Arrived, Pass
from curvlab.protocols.blocks import Block
from curvlab.protocols.pieces import whole


class Accumulated:
    """The backward passes since the gradients were cleared.

    ``entries`` are the calls of layers with gradient rows, and ``checked`` what was compared, by block;
    ``forwards`` the calls of the model, by parameter.  ``lost`` are calls of the model of which a block's
    gradient was cleared before this step.  ``weights`` names the layer blocks of each first parameter.
    """

    def __init__(self, weights: Mapping[str, Sequence[Block]]) -> None:
        self.weights = weights
        self.entries: dict[str, dict[Entry, None]] = defaultdict(dict)
        self.checked: dict[str, list[Arrived]] = defaultdict(list)
        self.forwards: dict[str, dict[Forward, None]] = defaultdict(dict)
        self.lost: dict[str, set[Forward]] = defaultdict(set)

    def uses(self, block: Block) -> list[Entry]:
        """The calls that the gradient of a block's weight is made of."""
        return list(self.entries.get(block.name, ()))

    def alive(self) -> list[Forward]:
        """The calls of the model that the present gradients are made of."""
        found: dict[Forward, None] = {}
        for forwards in self.forwards.values():
            found.update(forwards)
        return list(found)

    def joined(self, name: str, taken: Pass) -> int:
        """Add the calls of the model of a pass to those of a parameter; how many these are now."""
        self.forwards[name].update(dict.fromkeys(taken.forwards))
        return len(self.forwards[name])

    def enter(self, name: str, taken: Pass) -> None:
        """Add what arrived for layer blocks in a pass that reached one of their parameters."""
        for block, arrived in taken.arrived:
            if not arrived.entered:
                arrived.entered = True
                self.checked[block.name].append(arrived)
            if name == whole(block.parameters[0]):
                self._enter_rows(block, arrived)

    def _enter_rows(self, block: Block, arrived: Arrived) -> None:
        for use, g in arrived.pairs:
            if use.transposed:  # the statistics are those of the direct uses
                continue
            rows = use.outputs(g)
            use.grads = rows if use.grads is None else use.grads + rows
            self.entries[block.name][use] = None

    def forget(self, name: str) -> None:
        """Drop what was entered for a parameter whose gradient was cleared."""
        for block in self.weights.get(name, ()):
            self.lost[block.name].update(self.forwards[name])
            for use in self.entries.pop(block.name, ()):
                use.grads = None
            self.checked.pop(block.name, None)
        self.forwards.pop(name, None)

    def clear(self) -> None:
        """Drop everything."""
        for uses in self.entries.values():
            for use in uses:
                use.grads = None  # its graph may be kept, and go backward again
        self.entries.clear()
        self.checked.clear()
        self.forwards.clear()
        self.lost.clear()
