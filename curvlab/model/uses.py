"""Where a loss uses a layer's parameters, read from autograd's graph.

A gradient is explained by a layer's calls if every way from the loss to a parameter leads through one of
the calls, and every call in the graph leads to it once.  ``Graph.use`` decides this without any product.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass

from torch import Tensor
from torch.autograd.graph import Node

from curvlab.errors import ConfigError, Fault

#: the node that ``torch.utils.checkpoint`` leaves with ``use_reentrant=True``
REENTRANT = "CheckpointFunctionBackward"


@dataclass(frozen=True)
class Use:
    """How a loss reaches a block's parameters: names of nodes on the way; ``only``: by its calls alone."""

    ways: Hashable
    only: bool


class Graph:
    """The nodes under a loss, and for each of them the nodes that use it; costs one walk in Python."""

    def __init__(self, loss: Tensor) -> None:
        self.users: dict[Node, list[Node]] = {}
        self.leaves: dict[int, Node] = {}  # where gradients of leaves are summed, by identity of the leaf
        self.reentrant = False
        root = loss.grad_fn
        waiting = [] if root is None else [root]
        if root is not None:
            self.users[root] = []
        while waiting:
            node = waiting.pop()
            if not node.next_functions:
                leaf = getattr(node, "variable", None)
                if leaf is not None:
                    self.leaves[id(leaf)] = node
            elif type(node).__name__ == REENTRANT:
                self.reentrant = True
            for below, _ in node.next_functions:
                if below is None:
                    continue
                known = self.users.get(below)
                if known is None:
                    self.users[below] = [node]
                    waiting.append(below)
                else:
                    known.append(node)

    def use(self, parameters: Iterable[Tensor], arrivals: Iterable[Node]) -> Use:
        """How these parameters are used, given where gradients of their layer's outputs arrive."""
        live = [node for node in arrivals if node in self.users]
        there, only = set(live), True
        ways: set[tuple[int, str]] = set()
        for k, p in enumerate(parameters):
            leaf = self.leaves.get(id(p))
            found, strange = ([], []) if leaf is None else self._climbed(leaf, there)
            only = only and not strange and sorted(map(id, found)) == sorted(map(id, live))
            ways.update((k, node.name()) for node in {*found, *strange})
        return Use(frozenset(ways), only)

    def _climbed(self, leaf: Node, arrivals: set[Node]) -> tuple[list[Node], list[Node]]:
        """The calls that use a leaf, through casts and transposes of it, and the other nodes that do."""
        calls: list[Node] = []
        strange: list[Node] = []
        waiting = [leaf]
        while waiting:
            node = waiting.pop()
            users = self.users.get(node)
            if users is None:  # not in the graph
                continue
            if not users:  # the loss itself
                strange.append(node)
            for user in users:
                if user in arrivals:
                    calls.append(user)
                elif sum(below is not None for below, _ in user.next_functions) == 1:
                    waiting.append(user)
                elif len(above := self.users[user]) == 1 and above[0] in arrivals:
                    calls.append(above[0])
                else:
                    strange.append(user)
        return calls, strange


def require_no_reentrant(graph: Graph) -> None:
    """Raise ``ConfigError`` for a checkpoint whose inside ``torch.autograd.grad`` cannot reach."""
    if graph.reentrant:
        raise ConfigError(
            Fault(
                "the model uses torch.utils.checkpoint with use_reentrant=True: parameters inside the"
                " checkpoint get no gradient from an objective",
                hint="call checkpoint(…, use_reentrant=False)",
            )
        )
