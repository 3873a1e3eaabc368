"""The task ``burgers-flow``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curvlab.protocols.bounds import Count, Positive
from curvlab.protocols.preparation import Preparation
from curvlab_operators.burgers_data import BurgersData, Viscosity
from curvlab_operators.operator_task import OperatorTask


@dataclass(frozen=True)
class BurgersFlow(OperatorTask):
    """From a wave to what becomes of it: ``u_t + u u_x = ν u_xx`` with period 1, from time 0 to ``time``.

    Waves are Gaussian random fields.  Our own solver makes the data (Fourier series, fourth order in time).
    The operator commutes with translations, so the network has no channel of coordinates.
    """

    axes: ClassVar[int] = 1
    periodic: ClassVar[bool] = True
    preparation: ClassVar[type[Preparation] | None] = BurgersData

    grid: Count = 64  #: points of a period
    modes: Count = 16  #: wave numbers below this one are kept
    nu: Viscosity = 0.02  #: viscosity, in [0.01, 1]
    time: Positive = 0.5  #: of the outputs

    def data(self) -> BurgersData:
        return BurgersData(
            grid=self.grid,
            size=self.size,
            validation_size=self.validation_size,
            data_seed=self.data_seed,
            nu=self.nu,
            time=self.time,
        )
