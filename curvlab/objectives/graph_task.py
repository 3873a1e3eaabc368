"""One backward pass of autograd (a *graph task*): calls of the model in it, and gradients that arrived.

Reentrant checkpoints call layers inside a backward pass and run a backward pass of their own, so several
graph tasks may be under way, one inside the other.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import Tensor
from torch._C import _current_graph_task_id as current_task

from curvlab.objectives.entry import Entry
from curvlab.objectives.examples import Forward
from curvlab.protocols.blocks import Block

#: graph tasks that are remembered: one inside the other, as reentrant checkpoints are
MOST_NESTED = 8
#: no graph task is under way
IDLE = -1


class Arrived:
    """Gradients of one block that arrived in one graph task, and how far they explain its parameters'.

    ``begun`` holds, for each parameter, a random direction and ``.grad`` along it before anything is added;
    ``errors`` the difference between what is added and its value by the rows, and the bound for rounding.
    They stay tensors and leave the device together, when the step reads them.
    """

    __slots__ = ("begun", "entered", "errors", "looked", "pairs")

    def __init__(self) -> None:
        self.pairs: list[tuple[Entry, Tensor]] = []
        self.begun: dict[str, tuple[Tensor, Tensor, int, Tensor | None]] = {}
        self.errors: dict[str, tuple[Tensor, Tensor]] = {}
        self.entered = False
        self.looked: tuple[int, Tensor | None] | None = None  # an output, and its weights' gradient before


class GraphTask:
    """What arrived in one graph task, by block, and the calls of the model that it runs through."""

    def __init__(self) -> None:
        self.arrived: dict[str, Arrived] = defaultdict(Arrived)
        self.forwards: list[Forward] = []

    def join(self, forward: Forward) -> None:
        """The task runs through this call of the model, which so shares the loss of the others in it."""
        if not any(f is forward for f in self.forwards):
            forward.joined = True
            if self.forwards:
                self.forwards[0].merge(forward)
            self.forwards.append(forward)


@dataclass(frozen=True)
class Pass:
    """A backward pass that reached a parameter: the calls of the model in it, and what arrived by block."""

    forwards: list[Forward]
    arrived: list[tuple[Block, Arrived]]


class GraphTasks:
    """The graph tasks that are under way; at most ``MOST_NESTED`` older ones are kept."""

    def __init__(self) -> None:
        self.known: dict[int, GraphTask] = {}

    @property
    def now(self) -> int:
        """The number of the graph task under way in this thread; ``IDLE`` if there is none."""
        return current_task()

    @property
    def idle(self) -> bool:
        """Whether no graph task is under way in this thread."""
        return self.now == IDLE

    def current(self) -> GraphTask:
        """The graph task under way; of those before it, which may be around it, the last few are kept."""
        task = self.now
        if task not in self.known:
            for old in list(self.known)[: -MOST_NESTED or None]:
                del self.known[old]
            self.known[task] = GraphTask()
        return self.known[task]

    def around(self) -> Forward | None:
        """The call of the model that the graph task under way, or one around it, runs through."""
        for task in reversed(self.known.values()):
            if task.forwards:
                return task.forwards[-1]
        return None

    def clear(self) -> None:
        """Forget all of them: what arrived and was not entered belongs to no step."""
        self.known.clear()
