"""Passes through the model: the one entry to every evaluation of an objective.

All evaluations in a step, products and trial losses too, are of one function: the model under the caller's
autocast, if there is one, or that of the precision.  The method's parts compute without autocast.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.engine.loss_scale import LossScale, LossScaleOverflow
from curvlab.errors import ConfigError, Fault
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.objectives.gradients import scaled_by
from curvlab.protocols.arithmetic import Arithmetic, under
from curvlab.protocols.backend import Backend
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs
from curvlab.protocols.objective import Objective, Purpose


@dataclass(frozen=True)
class Cast:
    """An autocast on one kind of device."""

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


@dataclass(frozen=True)
class Passes:
    """How passes are made: under which autocast, with which loss scale, in which arithmetic of the device."""

    cast: Cast | None
    scale: float = 1.0
    arithmetic: Arithmetic | None = None

    @classmethod
    def of(cls, backend: Backend, device: str, scale: LossScale | None) -> Passes:
        """As the caller's autocast says, or else the precision."""
        compute = backend.dtypes.compute
        given = Cast.present(device) or (None if compute is None else Cast(device, compute))
        return cls(given, 1.0 if scale is None else scale.value, backend.evaluation)

    @property
    def plain(self) -> bool:
        """Whether they are made as the model is written."""
        return self.cast is None and self.scale == 1.0 and self.arithmetic is None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, the model is evaluated so."""
        with scaled_by(self.scale), under(self.arithmetic, self.cast):
            yield


class InPrecision(Objective):
    """``mine``, with its passes made as ``under`` says wherever it is asked."""

    def __init__(self, mine: Objective, under: Passes) -> None:
        self.mine, self.under = mine, under

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
        """The objective's own mark with the dtype of its passes."""
        mine = self.mine.mark(again=again)
        return None if mine is None else (mine, self.under.cast)

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
    """Products whose passes are made so; raises ``LossScaleOverflow``."""

    base: LinearOperator[BlockVector]
    under: Passes

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        if self.under.scale == 1.0:
            with self.under.on():
                return self.base @ v
        size = float(v.norm())  # of any length, v would leave float16's range on either side
        if size == 0.0 or not math.isfinite(size):
            return v * size
        with self.under.on():
            found = (self.base @ (v * (1.0 / size))).scale_(size)
        if not found.is_finite():
            raise LossScaleOverflow
        return found


def require_own_passes(backend: Backend) -> None:
    """Raise ``ConfigError`` for a plain loop under a precision whose passes are not the caller's."""
    compute = backend.dtypes.compute
    if compute is None:
        return
    name = str(compute).removeprefix("torch.")
    scaler = " and torch.amp.GradScaler" if backend.loss_scaling is not None else ""
    raise ConfigError(
        Fault(
            f"this precision evaluates objectives in {name}; in a plain loop the passes are the caller's",
            path="precision",
            hint=f"use torch.autocast{scaler} in the loop and leave precision out, or call"
            " step(curvlab.objective(…))",
        )
    )
