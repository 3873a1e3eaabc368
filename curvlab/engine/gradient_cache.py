"""The gradient where the last search ended: the next step begins with it if the function is the same."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.mark import bits_of
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.evidence import Evaluation, Step
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective


@dataclass(frozen=True)
class Known:
    """What an evaluation holds beside its gradient."""

    loss: float
    dtype: torch.dtype
    counts: Mapping[str, Any]

    @classmethod
    def of(cls, seen: Evaluation, loss: float) -> Known:
        """The same examples at another θ, where the loss is another."""
        names = ("examples", "curvature_examples", "positions", "terms", "absent")
        return cls(loss, seen.loss.dtype, {name: getattr(seen, name) for name in names})

    def with_gradient(self, gradient: BlockVector) -> Evaluation:
        """The evaluation."""
        loss = torch.tensor(self.loss, dtype=self.dtype, device=gradient.device)
        return Evaluation(loss=loss, gradient=gradient, **self.counts)


@dataclass
class GradientCache:
    """Loss and gradient at the present θ, if ``known``; ``mark`` is that of the last step's objective."""

    gradient: BlockVector
    known: Known | None = None
    mark: Hashable = None
    parameters: Hashable = None  #: the marks of θ

    @classmethod
    def of(cls, blocks: Blocks) -> GradientCache:
        """Nothing known yet, and the vector that will hold a gradient."""
        return cls(blocks.layout.zeros(like=blocks.like.detach()))

    def begin(self, objective: Objective, needs: Needs, blocks: Blocks) -> Evaluation | None:
        """A step on ``objective`` begins; its evaluation, if that is known already."""
        before, self.mark = self.mark, objective.mark() if _plain(needs) else None
        same = self.mark is not None and self.mark == before and self.gradient.layout == blocks.layout
        if not same or self.parameters != _marks(blocks):
            self.known = None
        # it stays known: this step may fail before it writes
        return None if self.known is None else self.known.with_gradient(self.gradient.clone())

    def end(self, objective: Objective, seen: Evaluation, step: Step, blocks: Blocks) -> None:
        """The step is taken: keep what is known at the new θ, unless its evaluations changed the function.

        A step of some of the blocks says nothing of the others, and one that searched in another way than
        by gradients on its gradient sample says nothing either.
        """
        self.known = None
        loss, gradient = (step.loss, step.gradient) if step.accepted else (float(seen.loss), seen.gradient)
        if self.mark is None or loss is None or gradient is None or not math.isfinite(loss):
            return
        if step.update.layout != blocks.layout or objective.mark(again=True) != self.mark:
            return
        if self.gradient.layout != blocks.layout:  # parameters were unfrozen
            self.gradient = GradientCache.of(blocks).gradient
        self.gradient.copy_(gradient)
        self.known, self.parameters = Known.of(seen, loss), _marks(blocks)


def _plain(needs: Needs) -> bool:
    """Whether loss and gradient are all that a step evaluates at its start."""
    return not (needs.layers or needs.ggn or needs.variance or needs.factored)


def _marks(blocks: Blocks) -> Hashable:
    return tuple(map(bits_of, blocks.parameters.values()))
