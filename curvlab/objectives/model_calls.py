"""Which call of the model the calls of its layers, and backward passes, belong to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from curvlab.objectives.examples import Declared, Forward, begun, outside
from curvlab.objectives.graph_task import GraphTask, GraphTasks

#: calls whose outputs could not be looked into that are remembered
MOST_OPAQUE = 64


class ModelCalls:
    """Follows the calls of a model whose examples are counted.

    ``declared`` is what the user declares of a call's examples; ``tokens``: an output may lead with the
    tokens of all examples.  ``current`` is the call under way.  ``opaque`` are calls in whose outputs no
    tensor with a gradient was found, as where the model returns an object of a class of its own.
    """

    def __init__(self, declared: Declared, tasks: GraphTasks, *, tokens: bool) -> None:
        self.declared, self.tasks, self.tokens = declared, tasks, tokens
        self.current: Forward | None = None
        self.opaque: list[Forward] = []

    def begin(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """The model is called on these inputs."""
        self.current = begun(self.declared, args, kwargs)
        self.current.task = self.tasks.now

    def end(self, output: Any) -> tuple[Forward, list[Tensor]] | None:
        """The model returns: the call, and the outputs through which a backward pass is known to be of it."""
        forward, self.current = self.current, None
        if forward is None:
            return None
        outputs = forward.returned(output, tokens=self.tokens)
        if not outputs:
            self.opaque = [f for f in self.opaque[-MOST_OPAQUE:] if not f.joined] + [forward]
        return forward, outputs

    def of_layer(self) -> Forward:
        """The call of the model that the call of a layer, made now, belongs to."""
        if self.current is not None and self.current.task == self.tasks.now:
            return self.current
        if self.tasks.idle:
            self.tasks.clear()
            return outside(self.declared)
        return self.tasks.around() or outside(self.declared)

    def claim(self, task: GraphTask) -> None:
        """Find the calls of a graph task that came through no output of the model."""
        if task.forwards:
            return
        around = self.tasks.around()
        unseen = [f for f in self.opaque if not f.joined]
        for forward in unseen or [around if around is not None else outside(self.declared)]:
            task.join(forward)
