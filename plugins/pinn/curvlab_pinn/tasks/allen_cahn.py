"""The Allen-Cahn equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from curvlab.pde import Inside, Problem, Term
from curvlab.pde.field import Field
from curvlab.pde.periodic import Periodic
from curvlab.pde.task import PdeTask
from curvlab.protocols.bounds import Count, Width
from curvlab.protocols.preparation import Preparation
from curvlab_pinn.references.preparation import AllenCahnReference


@dataclass(frozen=True)
class AllenCahn(PdeTask):
    """Solve ``∂u/∂t = 10⁻⁴ ∂²u/∂x² + 5 u − 5 u³``, periodic on [−1, 1], t in [0, 1], from ``x² cos πx``.

    The period and the initial value hold exactly: ``u = x² cos(πx) + t N(t, cos πx, sin πx)``.  ``val_l2`` is
    the relative error against a spectral solution, which ``curvlab tasks prepare allen-cahn`` stores and
    which is otherwise computed when the task is made, in two seconds.
    """

    preparation: ClassVar[type[Preparation] | None] = AllenCahnReference

    hidden: tuple[Width, ...] = (32, 32)  #: widths of the hidden layers
    interior: Count = 3000  #: points inside, ≥ 1
    boundary: Count = 1  #: not used: conditions hold exactly
    root: str | None = None  #: folder of a prepared solution; solved when the task is made if not given

    def problem(self) -> Problem:
        return Problem(
            coordinates={"t": (0.0, 1.0), "x": (-1.0, 1.0)},
            terms=(Term(_equation, Inside(self.interior)),),
            transform=_started,
            reference=lambda x: AllenCahnReference().solution(self.root).at(x),
        )

    def network(self, problem: Problem) -> nn.Module:
        features = Periodic({1: 2.0}, harmonics=2)
        return nn.Sequential(features, self.mlp(features.width(2), 1))


def _equation(u: Field, x: Tensor) -> Tensor:
    value = u()
    return u.d("t") - 1e-4 * u.d("x", "x") - 5 * value + 5 * value**3


def _started(x: Any, N: Any) -> Any:
    t, y = x[:, :1], x[:, 1:]
    return y * y * torch.cos(math.pi * y) + t * N
