"""How the parameters of one arm move in one step: their rates and decays, and those without a gradient.

Parameter groups that share an arm may differ in ``lr`` and ``weight_decay``: the arm computes with the values
of one of them, and each parameter's own are ratios to these.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.pieces import whole
from curvlab.protocols.storage import Storage


@dataclass(frozen=True)
class ParameterRates:
    """``θ_p ← θ_p − α · ratio_p · u_p`` for every parameter p of ``blocks`` that is not in ``absent``.

    ``rate`` multiplies the step rule's own rate.  ``ratios`` and ``decays`` name the parameters whose ratio
    is not 1; ``absent`` those without a gradient in this step, which neither move nor decay.
    """

    blocks: Blocks
    rate: float = 1.0
    ratios: Mapping[str, float] = field(default_factory=dict)
    decays: Mapping[str, float] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    #: the parameters in the working dtype, if the state holds them
    master: BlockVector | None = None

    def ratio(self, name: str) -> float:
        """The rate of a parameter, or of a piece of one, over the arm's own."""
        return self.ratios.get(whole(name), 1.0)

    @torch.no_grad()
    def add_parameters_(self, vector: BlockVector, factor: float) -> None:
        """vector ← vector + factor · decays · θ, for weight decay."""
        if not self.decays and not self.absent:
            return self.blocks.add_parameters_(vector, factor)
        for name, slot in self.blocks.slots(vector).items():
            share = self.decays.get(whole(name), 1.0)
            if share and whole(name) not in self.absent:
                slot.add_(self.blocks.value(name), alpha=factor * share)
        return None

    @torch.no_grad()
    def scaled(self, update: BlockVector) -> BlockVector:
        """The update in units of the arm's own rate, zero where nothing moves; itself if no ratio differs."""
        if not self.ratios and not self.absent:
            return update
        update = update.owned()
        for name, slot in self.blocks.slots(update).items():
            if whole(name) in self.absent:
                slot.zero_()
            elif whole(name) in self.ratios:
                slot.mul_(self.ratios[whole(name)])
        return update

    def times(self, factors: Mapping[str, float]) -> ParameterRates:
        """The same with the rate of each parameter multiplied by its factor; 1 where there is none."""
        if not factors:
            return self
        each = {n: self.ratios.get(n, 1.0) * factors.get(n, 1.0) for n in self.blocks.parameters}
        own = max(each.values(), key=abs)
        ratios = {n: r / own for n, r in each.items() if r != own}
        return replace(self, rate=self.rate * own, ratios=ratios)

    @torch.no_grad()
    def write_(self, update: BlockVector, alpha: float, storage: Storage) -> None:
        """The one write: θ ← θ − alpha · update, rounded once where θ is narrower than the update.

        With a ``master`` it is that which moves, and θ is rounded from it.
        """
        if self.master is None and not self.absent and self.blocks.uniform(update.dtype):
            return self.blocks.subtract_(update, alpha)
        masters = {} if self.master is None else self.blocks.slots(self.master)
        for name, slot in self.blocks.slots(update).items():
            if whole(name) in self.absent:
                continue
            p = self.blocks.value(name)
            if name in masters:
                p.copy_(_current(masters[name], p).sub_(slot, alpha=alpha))
            elif p.dtype == slot.dtype:
                p.sub_(slot, alpha=alpha)
            else:
                storage.write_parameter_(p, p.to(slot.dtype).sub_(slot, alpha=alpha))
        return None

    @torch.no_grad()
    def tried(self, update: BlockVector, alpha: float) -> dict[str, Tensor]:
        """θ − alpha · update by parameter, written nowhere."""
        slots = self.blocks.assembled(update)
        masters = {} if self.master is None else self.blocks.assembled(self.master)
        found = {}
        for n, p in self.blocks.parameters.items():
            start = _current(masters[n], p) if n in masters else p
            found[n] = p.detach() if n in self.absent else start.sub(slots[n], alpha=alpha).to(p.dtype)
        return found


def _current(master: Tensor, p: Tensor) -> Tensor:
    """The master of a parameter; entries that other code has written since are the parameter's."""
    return master.copy_(torch.where(master.to(p.dtype) == p, master, p))
