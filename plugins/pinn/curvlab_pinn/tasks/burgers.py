"""Burgers' equation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvlab.pde import Adaptive, Problem, Term
from curvlab.pde.field import Field
from curvlab.pde.task import PdeTask
from curvlab.protocols.bounds import Count, Width
from curvlab_pinn.references.burgers import NU, Viscosity, burgers_at


@dataclass(frozen=True)
class Burgers(PdeTask):
    """Solve ``∂u/∂t + u ∂u/∂x = ν ∂²u/∂x²`` on [0, 1] × [−1, 1], from ``−sin πx`` and with u = 0 at the ends.

    Both conditions hold exactly: ``u = −sin(πx) + t (1 − x²) N(t, x)``.  A shock of width 2ν forms at x = 0.
    Points are uniform at first; with ``resample`` they are drawn again by the root of the residual
    (``Adaptive``), which places them in the shock.  ``val_l2`` is the relative error against the exact
    solution (Cole and Hopf), at test points.
    """

    hidden: tuple[Width, ...] = (20, 20, 20)  #: widths of the hidden layers
    interior: Count = 3000  #: points inside, ≥ 1
    boundary: Count = 1  #: not used: conditions hold exactly
    nu: Viscosity = NU  #: ν

    def problem(self) -> Problem:
        nu = self.nu

        def equation(u: Field, x: Tensor) -> Tensor:
            return u.d("t") + u() * u.d("x") - nu * u.d("x", "x")

        return Problem(
            coordinates={"t": (0.0, 1.0), "x": (-1.0, 1.0)},
            terms=(Term(equation, Adaptive(self.interior, power=0.5)),),
            transform=_started,
            reference=lambda x: burgers_at(x, nu),
        )


def _started(x: Any, N: Any) -> Any:
    """Zero at both ends, −sin πx at time 0."""
    t, y = x[:, :1], x[:, 1:]
    return t * (1.0 - y * y) * N - torch.sin(math.pi * y)
