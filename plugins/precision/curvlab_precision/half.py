"""Parameters in 16 bits: ``bfloat16`` and ``float16``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from curvlab.precision.precision import Precision
from curvlab.protocols.backend import Rounding
from curvlab.protocols.dtypes import Dtypes


@dataclass(frozen=True)
class Bfloat16(Precision):
    """The model in bfloat16, with its gradients and rows; a step computes in float32 and stores less.

    Stored between steps: in float32 what is factorized (factors of KFAC, EKFAC and Shampoo, their inverses
    and bases), in bfloat16 factors of inverses (SINGD, INGD, IKFAC) and moving averages of gradients.

    bfloat16 has the range of float32 and 8 bits of a number: an increment below 1/512 of what it is added to
    is lost if it is rounded to the nearest.  Rounding by chance keeps the mean.  That is the default for
    states (``averages``) and for parameters (``parameter_write``).  With ``parameter_write = "master"``
    steps write to a copy of the parameters in float32, of 4 bytes each, from which those of the model are
    rounded.
    """

    averages: Rounding = "stochastic"  #: rounding of states in bfloat16
    parameter_write: Literal["stochastic", "nearest", "master"] = (
        "stochastic"  #: how a step writes parameters
    )

    @property
    def base(self) -> Dtypes:
        return Dtypes(
            parameters=torch.bfloat16,
            compute=None,
            rows=None,
            factors=torch.float32,
            inverse_factors=torch.bfloat16,
            moments=torch.bfloat16,
        )

    @property
    def parameter_rounding(self) -> Rounding:
        return "stochastic" if self.parameter_write == "stochastic" else "nearest"

    @property
    def master(self) -> bool:
        return self.parameter_write == "master"


@dataclass(frozen=True)
class Float16(Precision):
    """The model in float16, for a caller who scales the loss; every state in float32.

    float16 overflows at 65504 and loses gradients below 6e-8; "mixed-float16" scales the loss by
    itself.  Steps write to a copy of the parameters in float32 (``"master"``), or round to the nearest
    number.
    """

    parameter_write: Literal["nearest", "master"] = "master"  #: how a step writes parameters

    @property
    def base(self) -> Dtypes:
        full = torch.float32
        return Dtypes(torch.float16, None, None, factors=full, inverse_factors=full, moments=full)

    @property
    def master(self) -> bool:
        return self.parameter_write == "master"
