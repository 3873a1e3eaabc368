"""Which parameters of a model an optimizer trains: their blocks, and those that are frozen so far."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from curvlab.errors import ConfigError, Fault
from curvlab.model.admission import require_trainable
from curvlab.model.partition import partition
from curvlab.model.sharding import shards_of
from curvlab.protocols.blocks import Blocks, as_real
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.reader import LayerReader


class Trained:
    """The parameters that require a gradient, in ``blocks``; ``frozen`` holds the others by name.

    Raises ``ConfigError`` if there are none, and for parameters that cannot be trained.
    """

    def __init__(
        self, model: nn.Module, preconditioner: Preconditioner[object], readers: Sequence[LayerReader]
    ) -> None:
        self.shards = shards_of(model)  # first: from here on the parameters are the model's own
        require_trainable(model)
        self.model, self.part, self.readers = model, preconditioner, readers
        self.blocks = self._partition()
        if not self.blocks.members:
            raise ConfigError(Fault("no parameter of the model requires a gradient: nothing to train"))
        self.frozen = {n: p for n, p in model.named_parameters() if n not in self.blocks.parameters}
        self._kind = self._present()

    def require_unchanged(self) -> None:
        """Raise ``ConfigError`` if the model was moved or converted since."""
        present = self._present()
        if present != self._kind:
            was, now = (f"{dtype} on {device}" for dtype, device in (self._kind, present))
            raise ConfigError(
                Fault(
                    f"the model's parameters are {now}, but were {was} when the optimizer was made",
                    hint="convert or move the model first, and then make the optimizer",
                )
            )

    def _present(self) -> tuple[torch.dtype, torch.device]:
        p = as_real(next(iter(self.blocks.parameters.values())))
        return p.dtype, p.device

    def thawed(self) -> list[str]:
        """Frozen parameters that require a gradient now."""
        return [n for n, p in self.frozen.items() if p.requires_grad and p.numel()]

    def adopt(self) -> tuple[list[str], set[str]]:
        """Take the thawed ones into the blocks; names of blocks that are new, and of those that are gone."""
        if self.shards is not None:
            self.shards.reshard()
        require_trainable(self.model)
        before = self.blocks.layout.names
        self.blocks = self._partition(self.blocks)
        self.frozen = {n: p for n, p in self.frozen.items() if n not in self.blocks.parameters}
        now = self.blocks.layout.names
        return [n for n in now if n not in before], set(before).difference(now)

    def _partition(self, known: Blocks | None = None) -> Blocks:
        return partition(self.model, self.part.joins, known, self.part.reads, self.readers, self.shards)
