"""The data of the task ``darcy-flow``: random permeabilities, and the pressures that follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from curvlab.protocols.bounds import Count, Positive
from curvlab.tasks.draws import Normal
from curvlab_operators.cosine_fields import at_centers, coefficients
from curvlab_operators.darcy import solve
from curvlab_operators.operator_data import OperatorData
from curvlab_operators.pairs import Pairs

#: cosines of a random field on each axis: at τ = 3, α = 2 what is left out has 3e-7 of its variance
MODES = 32

Coefficient = Literal["two-phase", "smooth"]


@dataclass(frozen=True, kw_only=True)
class DarcyData(OperatorData):
    """Draw permeabilities a and solve Darcy's equation for the pressures u, -div(a grad u) = 1.

    A random field decides: its covariance is (-Laplacian + 9 I)^-2 with Neumann conditions. The permeability
    is high where the field is positive and low elsewhere (two-phase), or the exponential of 5 times the field
    (smooth). After Li et al. 2021, arXiv 2010.08895.
    """

    equation: ClassVar[str] = "darcy-flow"

    grid: Count = 32  #: cells on each axis
    coefficient: Coefficient = "two-phase"  #: how the permeability follows from the field
    high: Positive = 12.0  #: permeability where the field is positive
    low: Positive = 3.0  #: permeability elsewhere

    def made(self) -> Pairs:
        n = self.size + self.validation_size
        field = at_centers(coefficients(Normal(self.data_seed), n, MODES, tau=3.0, alpha=2.0), self.grid)
        if self.coefficient == "smooth":
            a = (5.0 * field).exp()
        else:
            a = torch.where(field > 0, self.high, self.low).to(field.dtype)
        u = solve(a, torch.ones_like(a))
        return Pairs(a.unsqueeze(1), u.unsqueeze(1), self.validation_size)
