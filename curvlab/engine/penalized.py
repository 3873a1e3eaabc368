"""The objective of a loss, the penalties of callbacks, and their constraints.

The gradient of the penalties joins that of the loss once layer statistics are taken: no row of statistics,
and so no curvature factor, holds any of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from curvlab.engine.companions import Companions
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.linalg.work import without_autocast
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective, Purpose
from curvlab.protocols.pieces import cut, whole


class Penalized(Objective):
    """``mine`` plus the penalties of ``companions`` on the parameters of ``model``.

    Products multiply with ``G + diag(ρ)``, ρ being the penalties' ``ridge``.  There is no ``mark``, because
    penalties change with their states: every step evaluates its gradient anew.
    """

    def __init__(self, mine: Objective, companions: Companions, model: nn.Module) -> None:
        self.mine, self.companions, self.model = mine, companions, model

    def __call__(self) -> Float[Tensor, ""]:
        loss = self.mine()
        value, gradient = self._differentiated(self._present())
        for name, p in self.model.named_parameters():
            g = gradient.get(name)
            if g is not None:
                p.grad = g if p.grad is None else p.grad + g
        had = {n: p.grad for n, p in self.model.named_parameters() if p.grad is not None}
        for name, g in self.companions.tangent(had).items():
            had[name].copy_(g)
        return loss + value

    def loss(self, at: Mapping[str, Tensor] | None = None) -> Float[Tensor, ""]:
        """The batch's loss and the penalties, both at ``at``."""
        return self.mine.loss(at) + self._value({**self._present(), **(at or {})})

    def differentiate(
        self, at: Mapping[str, Tensor], *, acceptance: bool = False
    ) -> tuple[Float[Tensor, ""], Mapping[str, Tensor]]:
        loss, gradient = self.mine.differentiate(at, acceptance=acceptance)
        value, more = self._differentiated({**self._present(), **at})
        together = dict(gradient)
        for name in gradient:
            other = more.get(name)
            if other is not None:
                together[name] = gradient[name] + other
        return loss + value, {**together, **self.companions.tangent(together)}

    def start(self, seen: Evaluation) -> Float[Tensor, ""]:
        found = self.mine.start(seen)
        return found if found is seen.loss else found + self._value(self._present())

    def total_weight(self, purpose: Purpose) -> float:
        return self.mine.total_weight(purpose)

    def cast(self, dtype: torch.dtype) -> Objective | None:
        other = self.mine.cast(dtype)
        return None if other is None else Penalized(other, self.companions, self.model)

    def evaluate(self, needs: Needs, blocks: Blocks, ctx: Context) -> Evaluation:
        """Loss, gradient and products with the penalties; layer statistics are the batch's own."""
        seen = self.mine.evaluate(needs, blocks, ctx)
        value, gradient = self._differentiated(self._present())
        beside = self._beside(seen, blocks, gradient)
        given = {name for name, g in gradient.items() if g is not None}
        ridge = {n: value for n, value in self.companions.ridge().items() if value}
        return replace(
            seen,
            loss=seen.loss + value.to(seen.loss.dtype),
            gradient=seen.gradient.owned().add_(beside),
            beside=beside,
            absent=seen.absent - given,
            ggn=seen.ggn if seen.ggn is None or not ridge else _Products(seen.ggn, blocks, ridge),
        )

    # helpers

    def _present(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def _value(self, at: Mapping[str, Tensor]) -> Tensor:
        with without_autocast(next(iter(at.values())).device):
            return self.companions.penalty(self.model, at)

    def _beside(self, seen: Evaluation, blocks: Blocks, gradient: Mapping[str, Tensor | None]) -> BlockVector:
        """What turns the gradient of the loss into that of a step: penalties, and what constraints take."""
        beside = blocks.pack(gradient)
        if not self.companions.constraining:
            return beside
        total = seen.gradient.clone().add_(beside)
        found = self.companions.tangent(blocks.assembled(total))
        slots, own = blocks.slots(beside), blocks.slots(seen.gradient)
        for name, slot in slots.items():
            if whole(name) in found:
                slot.copy_(cut(name, found[whole(name)]) - own[name])
        return beside

    def _differentiated(self, at: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor | None]]:
        """Value and gradient by parameter; ``None`` where the penalties do not depend on one."""
        leaves = {name: t.detach().requires_grad_() for name, t in at.items()}
        with torch.enable_grad(), without_autocast(next(iter(leaves.values())).device):
            value = self.companions.penalty(self.model, leaves)
            if not value.requires_grad:  # no term is on at this time
                return value, dict.fromkeys(leaves)
            parts = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
        return value.detach(), dict(zip(leaves, parts, strict=True))


@dataclass(frozen=True)
class _Products(LinearOperator[BlockVector]):
    """``G + diag(ρ)``, ρ by parameter."""

    base: LinearOperator[BlockVector]
    blocks: Blocks
    ridge: Mapping[str, float]

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        out, given = (self.base @ v).owned(), self.blocks.slots(v)
        for name, slot in self.blocks.slots(out).items():
            rho = self.ridge.get(whole(name), 0.0)
            if rho:
                slot.add_(given[name], alpha=rho)
        return out
