"""Steps inside the caller's autocast: the model is evaluated as the caller asks, the method computes as ever.

All evaluations of an objective in such a step, products and trial losses too, are of one function: the
model under autocast.  The arithmetic of the method's parts stays in the parameters' precision.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.arithmetic import Arithmetic
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective, Purpose


@dataclass(frozen=True)
class Cast:
    """The caller's autocast on one kind of device."""

    device: str
    dtype: torch.dtype

    @classmethod
    def present(cls, device: str) -> Cast | None:
        """The autocast that is on, if any."""
        if not torch.is_autocast_enabled(device):
            return None
        return cls(device, torch.get_autocast_dtype(device))

    def on(self) -> AbstractContextManager[Any]:
        """Inside, it is on."""
        return torch.autocast(self.device, dtype=self.dtype)


def own_precision(device: str) -> AbstractContextManager[Any]:
    """Inside, no autocast is on: the method computes in the precision of the parameters."""
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


class Autocasted(Objective):
    """``mine``, evaluated under an autocast, or another choice of arithmetic, wherever it is asked."""

    def __init__(self, mine: Objective, cast: Arithmetic) -> None:
        self.mine, self.under = mine, cast

    def __call__(self) -> Float[Tensor, ""]:
        with self.under.on():
            return self.mine()

    def loss(self, at: Mapping[str, Tensor] | None = None) -> Float[Tensor, ""]:
        with self.under.on():
            return self.mine.loss(at)

    def differentiate(
        self, at: Mapping[str, Tensor], *, acceptance: bool = False
    ) -> tuple[Float[Tensor, ""], Mapping[str, Tensor]]:
        with self.under.on():
            return self.mine.differentiate(at, acceptance=acceptance)

    def start(self, seen: Evaluation) -> Float[Tensor, ""]:
        with self.under.on():
            return self.mine.start(seen)

    def mark(self, *, again: bool = False) -> Hashable:
        mine = self.mine.mark(again=again)
        return None if mine is None else (mine, self.under)

    def total_weight(self, purpose: Purpose) -> float:
        return self.mine.total_weight(purpose)

    def cast(self, dtype: torch.dtype) -> Objective | None:
        return self.mine.cast(dtype)  # in a wider dtype, without autocast: it is asked for when numbers fail

    def evaluate(self, needs: Needs, blocks: Blocks, ctx: Context) -> Evaluation:
        with self.under.on():
            seen = self.mine.evaluate(needs, blocks, ctx)
        return seen if seen.ggn is None else replace(seen, ggn=_Products(seen.ggn, self.under))


@dataclass(frozen=True)
class _Products(LinearOperator[BlockVector]):
    """Products made under an autocast, or another choice of arithmetic."""

    base: LinearOperator[BlockVector]
    under: Arithmetic

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        with self.under.on():
            return self.base @ v
