"""The task ``darcy-flow``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curvlab.protocols.bounds import Positive
from curvlab.protocols.preparation import Preparation
from curvlab_operators.darcy_data import Coefficient, DarcyData
from curvlab_operators.operator_task import OperatorTask


@dataclass(frozen=True)
class DarcyFlow(OperatorTask):
    """From permeability to pressure: ``−∇·(a ∇u) = 1`` on the unit square, u = 0 on its sides.

    ``coefficient = "two-phase"``: a is ``high`` where a Gaussian random field is positive and ``low``
    elsewhere, after Li et al. 2021, arXiv 2010.08895; ``"smooth"``: the exponential of 5 times the field.
    Our own solver makes the data (finite volumes, second order), so errors are not those of published files.
    """

    axes: ClassVar[int] = 2
    periodic: ClassVar[bool] = False
    preparation: ClassVar[type[Preparation] | None] = DarcyData

    coefficient: Coefficient = "two-phase"  #: how a follows from the random field
    high: Positive = 12.0  #: permeability where the field is positive
    low: Positive = 3.0  #: permeability elsewhere

    def data(self) -> DarcyData:
        return DarcyData(
            grid=self.grid,
            size=self.size,
            validation_size=self.validation_size,
            data_seed=self.data_seed,
            coefficient=self.coefficient,
            high=self.high,
            low=self.low,
        )
