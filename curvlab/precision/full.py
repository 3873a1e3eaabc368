"""One dtype for everything: float32, and float64, the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from curvlab.precision.precision import Precision
from curvlab.protocols.dtypes import Dtypes


@dataclass(frozen=True)
class Full(Precision):
    """Parameters, passes, statistics and states in ``dtype_name``, unless a role has another of its own."""

    dtype_name: Literal["float32", "float64"] = "float32"

    @property
    def base(self) -> Dtypes:
        return Dtypes.uniform(torch.float64 if self.dtype_name == "float64" else torch.float32)
