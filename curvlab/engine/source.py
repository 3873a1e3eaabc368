"""Where the evaluation of a step comes from: an objective, or the gradients of the caller's own loop."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.engine.agreement import ALONE, Agreement
from curvlab.engine.companions import Companions
from curvlab.engine.gradient_cache import GradientCache
from curvlab.engine.health import non_finite_statistics
from curvlab.engine.ladder import Emit, evaluated
from curvlab.engine.loss_scale import LossScaleOverflow
from curvlab.engine.owners import Owners
from curvlab.engine.passes import InPrecision, Passes
from curvlab.engine.penalized import Penalized
from curvlab.engine.undo import Kept, Undo
from curvlab.linalg.work import without_autocast
from curvlab.objectives.ambient import Ambient
from curvlab.objectives.distributed import DistributedObjective
from curvlab.objectives.ranks import Ranks
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Step
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.objective import Objective
from curvlab.protocols.report import Event


class Source(ABC):
    """What a step evaluates.

    ``objective`` is that of trials; there is none in a caller's own loop.  ``returned`` is what
    ``optimizer.step`` returns.
    """

    objective: Objective | None = None
    returned: Any = None

    @abstractmethod
    def evaluate(self, ctx: Context, undo: Undo) -> Evaluation | None:
        """The evaluation at θ; ``None`` if this step is not taken."""

    def evaluate_after(self, ctx: Context) -> Evaluation | None:
        """The evaluation where the step ended, for the parts that asked for it.

        ``None`` if no part did, or if it is not finite.
        """
        return None

    def finish(self, seen: Evaluation, step: Step) -> None:
        """The step is written."""
        return None


class FromBackward(Source):
    """The gradients that ``loss.backward()`` left, and the layers' calls that made them.

    ``closure`` is torch's, and makes them first if it is given.  ``scales`` says what gradients and layer
    statistics carry of a scaler's factor, or ``None`` to skip the step (``unscaled_by``).
    """

    def __init__(
        self,
        ambient: Ambient,
        closure: Callable[[], Any] | None,
        scales: Callable[[], tuple[float, float] | None],
        emit: Emit,
    ) -> None:
        self.ambient, self.closure, self.scales, self.emit = ambient, closure, scales, emit

    def evaluate(self, ctx: Context, undo: Undo) -> Evaluation | None:
        """Calls the closure, if any; ``None`` if torch's ``GradScaler`` found a non-finite gradient."""
        if self.closure is not None:
            with torch.enable_grad():
                self.returned = self.closure()
        scales = self.scales()
        if scales is None:  # torch's GradScaler found an infinity
            self.ambient.clear()
            self.emit(Event("skipped-by-scaler", ctx.step, {}))
            return None
        with without_autocast(self.ambient.blocks.like.device):
            return self.ambient.collect(_scalar(self.returned), *scales)


def _scalar(value: Any) -> Tensor | None:
    """The loss that a closure returned, if that is what it returned."""
    if isinstance(value, Tensor):
        return value if value.numel() == 1 else None
    return torch.tensor(float(value), device="cpu") if isinstance(value, (int, float)) else None


class FromObjective(Source):
    """An objective, evaluated for ``needs``.

    ``quiet`` gives the context in which nothing is recorded and no autocast of the caller's is on.
    ``cache`` may know the evaluation from the last step's search.  If its losses are ``scaled``,
    an evaluation that is not finite is an overflow.
    """

    def __init__(
        self,
        objective: Objective,
        needs: Needs,
        blocks: Blocks,
        quiet: Callable[[], AbstractContextManager[Any]],
        cache: GradientCache | None,
        emit: Emit,
        scaled: bool = False,
        agreement: Agreement = ALONE,
    ) -> None:
        self.objective, self.scaled, self.agreement = objective, scaled, agreement
        self.needs, self.blocks, self.quiet, self.cache, self.emit = needs, blocks, quiet, cache, emit

    def evaluate(self, ctx: Context, undo: Undo) -> Evaluation:
        """One evaluation, or loss and gradient from the cache, where the last step has left them."""
        assert self.objective is not None
        undo.keep(list(self.blocks.model.buffers()))  # averages of batch normalization move
        with self.quiet():
            known = None
            if self.cache is not None:
                known = self.cache.begin(self.objective, self.needs, self.blocks)
            seen = known or self._evaluated(self.objective, ctx)
        self.returned = seen.loss
        return replace(seen, theta=self.blocks.read) if self.needs.after else seen

    def evaluate_after(self, ctx: Context) -> Evaluation | None:
        """The same batch at the new parameters; buffers and random numbers are as after one evaluation."""
        if not self.needs.after:
            return None
        assert self.objective is not None
        buffers = Kept(list(self.blocks.model.buffers()))
        needs = Needs.statistics(Labels.DATA, layer_examples=self.needs.layer_examples, factored=True)
        try:
            with self.quiet():
                seen = self.objective.evaluate(needs, self.blocks, ctx)
        finally:
            buffers.put_back()
        finite = math.isfinite(float(seen.loss)) and seen.gradient.is_finite()
        if not finite or any(non_finite_statistics(seen.layers)):
            self.emit(Event("after-not-finite", ctx.step, {"loss": float(seen.loss)}))
            return None
        return replace(seen, theta=self.blocks.read)

    def _evaluated(self, objective: Objective, ctx: Context) -> Evaluation:
        """Raises ``LossScaleOverflow`` under a loss scale, and ``Diverged`` without, if it is not finite."""
        if not self.scaled:
            return evaluated(objective, self.needs, self.blocks, ctx, self.emit)
        seen = objective.evaluate(self.needs, self.blocks, ctx)
        self.returned = seen.loss
        finite = math.isfinite(float(seen.loss)) and seen.gradient.is_finite()
        overflows = not finite or any(non_finite_statistics(seen.layers))
        if self.agreement.any(overflows)[0]:  # the rows of a block may be with one process alone
            raise LossScaleOverflow
        return seen

    def finish(self, seen: Evaluation, step: Step) -> None:
        """Caches loss and gradient at the new parameters, if the step has computed them."""
        if self.cache is not None and self.objective is not None:
            self.cache.end(self.objective, seen, step, self.blocks)


def asked_by(
    objective: Objective,
    companions: Companions | None,
    model: nn.Module,
    ranks: Ranks | None,
    owners: Owners | None,
    passes: Passes,
) -> Objective:
    """An objective with the penalties of callbacks, over all processes, in the passes of a precision."""
    if companions is not None and (companions.penalizing or companions.constraining):
        objective = Penalized(objective, companions, model)
    if ranks is not None:
        objective = DistributedObjective(objective, ranks, None if owners is None else owners.of)
    return objective if passes.plain else InPrecision(objective, passes)
