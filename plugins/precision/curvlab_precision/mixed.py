"""Passes in 16 bits, by autocast, of parameters in 32: ``mixed-bfloat16`` and ``mixed-float16``."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch

from curvlab.precision.precision import Precision
from curvlab.protocols.bounds import Bounds, Count, check_bounds
from curvlab.protocols.dtypes import Dtypes
from curvlab.protocols.loss_scaling import LossScaling


@dataclass(frozen=True)
class Mixed(Precision):
    """Parameters and everything stored in float32; passes through the model under autocast in bfloat16.

    Rows of layer statistics come in the dtype that a layer computed in, and are summed in float32.
    """

    @property
    def base(self) -> Dtypes:
        return replace(Dtypes.uniform(torch.float32), compute=torch.bfloat16)


@dataclass(frozen=True)
class MixedFloat16(Precision):
    """Parameters and everything stored in float32; passes through the model under autocast in float16.

    The loss is multiplied by a scale before it is differentiated, and what arrives is divided by it in
    float32. A step whose loss, gradient or statistics are not finite is not taken: parameters, states,
    counters and random numbers are as before, the event ``loss-scale-overflow`` says so, and the scale is
    multiplied by ``backoff``.  After ``interval`` steps without overflow it is multiplied by ``growth``.
    """

    scale: Annotated[float, Bounds(least=1)] = 65536.0  #: the loss scale at the start
    growth: Annotated[float, Bounds(least=1)] = 2.0
    backoff: Annotated[float, Bounds(above=0, below=1)] = 0.5
    interval: Count = 2000  #: steps without overflow before the scale grows

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bounds(self)

    @property
    def base(self) -> Dtypes:
        return replace(Dtypes.uniform(torch.float32), compute=torch.float16)

    @property
    def loss_scaling(self) -> LossScaling:
        return LossScaling(self.scale, self.growth, self.backoff, self.interval)
