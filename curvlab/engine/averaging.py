"""An average of weights at work: beside the optimizer while it trains, in the model while it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from curvlab.engine.state import export, restore
from curvlab.errors import ConfigError, Fault, UsageError
from curvlab.protocols.average import Average, Taken, Weights
from curvlab.protocols.backend import Backend
from curvlab.protocols.blocks import as_real

#: where the optimizer's snapshot holds the state
PREFIX = "average/"
#: and the trained weights, while the averaged ones are in the model
KEPT = PREFIX + "kept/"


class Averaging:
    """An average with its state, over the parameters of a model that are trained.

    ``used`` is how much of a run's budget is used up, which the run sets before a step; ``None`` elsewhere.
    ``kept`` holds the trained parameters and the buffers while the averaged weights are in the model.  Raises
    ``ConfigError`` for a precision that the average cannot work with, and for a model that is ``sharded``.
    """

    def __init__(
        self, part: Average[Any], model: nn.Module, backend: Backend, *, sharded: bool = False
    ) -> None:
        if sharded:
            what = f"{type(part).__name__} averages whole weights, and fully_shard keeps them in shards"
            hint = "train with DistributedDataParallel, or without an average"
            raise ConfigError(Fault(what, path="average", hint=hint))
        if part.moves and backend.master:
            what = (
                f"{type(part).__name__} reads steps from the parameters, of which this precision has others"
            )
            hint = 'use parameter_write = "stochastic", or float32 parameters'
            raise ConfigError(Fault(what, path="average", hint=hint))
        self.part, self.model = part, model
        self.used: float | None = None
        self.kept: dict[str, Tensor] | None = None
        self.names = tuple(n for n, p in model.named_parameters() if p.requires_grad)
        self.state = part.init(self.theta())

    def theta(self) -> Weights:
        """The parameters, sharing their memory; complex ones as pairs of reals."""
        named = dict(self.model.named_parameters())
        return {n: as_real(named[n].detach()) for n in self.names}

    def require_ready(self) -> None:
        """Raise while the averaged weights are in the model, and where a budget must be known and is not."""
        if self.kept is not None:
            raise UsageError(
                "step() while the averaged weights are in the model; leave the block"
                " `with optimizer.averaged()` first, or call optimizer.train()"
            )
        if self.part.needs_budget and self.used is None:
            name = type(self.part).__name__
            what = f"{name} begins at a part of a run's budget, which a loop of one's own does not have"
            hint = "set start_step, the number of the step with which it begins"
            raise ConfigError(Fault(what, path="average", hint=hint))

    def require_covered(self, names: list[str]) -> None:
        """Raise ``ConfigError`` if parameters that were frozen are to be trained: no average holds them."""
        if names:
            what = f"{', '.join(names[:5])} were frozen when the optimizer was made, so no average holds them"
            hint = "call requires_grad_() first, and then make the optimizer"
            raise ConfigError(Fault(what, path="average", hint=hint))

    @torch.no_grad()
    def stepped(self, step: int, lr: float) -> None:
        """The method has taken step ``step``, from 0."""
        self.part.stepped(self.state, self.theta(), Taken(step, lr, self.used))

    # evaluation

    @torch.no_grad()
    def enter(self) -> None:
        """Put the averaged weights into the model; nothing, if they are there already."""
        if self.kept is not None:
            return
        kept = {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}
        self.kept = {name: tensor.detach().clone() for name, tensor in kept.items()}
        theta = self.theta()
        for name, weight in self.part.weights(self.state, theta).items():
            theta[name].copy_(weight)

    @torch.no_grad()
    def leave(self) -> None:
        """Put trained parameters and buffers back, bit for bit; nothing, if they are there already."""
        kept, self.kept = self.kept, None
        if kept is None:
            return
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            tensor.copy_(kept[name])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, the model holds the averaged weights; afterwards it is as it was, its buffers too."""
        inside = self.kept is not None
        self.enter()
        try:
            yield
        finally:
            if not inside:
                self.leave()

    # as data

    def snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The state as named tensors (live) and plain values.

        While the averaged weights are in the model, the trained ones are part of it: a model that is saved
        then goes on from them.
        """
        tensors, plain = export(self.state)
        kept = {KEPT + n: t for n, t in (self.kept or {}).items()}
        return {**kept, **{PREFIX + n: t for n, t in tensors.items()}}, {
            PREFIX + n: v for n, v in plain.items()
        }

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Take on what ``snapshot`` gave, among other entries; raises ``CheckpointError`` if it differs."""
        mine = {n: t for n, t in tensors.items() if n.startswith(PREFIX)}
        kept = {n.removeprefix(KEPT): t.clone() for n, t in mine.items() if n.startswith(KEPT)}
        own = {n.removeprefix(PREFIX): t for n, t in mine.items() if not n.startswith(KEPT)}
        values = {n.removeprefix(PREFIX): v for n, v in plain.items() if n.startswith(PREFIX)}
        restore(self.state, own, values)
        self.kept = kept or None
