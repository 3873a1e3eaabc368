"""Precisions: the dtypes of training, and the device."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.linalg import factorizations
from curvlab.linalg.gram import gram_
from curvlab.precision.device import OnDevice
from curvlab.protocols.backend import Backend, Rounding
from curvlab.protocols.dtypes import Dtypes

#: dtypes of what a step stores, as settings name them
Stored = Literal["bfloat16", "float32", "float64"]


@dataclass(frozen=True, kw_only=True)
class Precision(OnDevice, Backend):
    """What precisions share: factorizations, the device, and dtypes of single roles.

    Subclasses say the dtypes (``base``).  A role's setting overrides what they say of it.  ``averages`` is
    how states in bfloat16 are rounded; by chance, an average moves on even where its increments are below
    half a unit in the last place.  Raises ``ConfigError`` where it is set and no state is in bfloat16.
    """

    rows: Stored | None = None  #: dtype of rows of layer statistics; unset: that of the layer's output
    factors: Stored | None = None  #: dtype of curvature factors and of factors of inverses, all of them
    moments: Stored | None = None  #: dtype of moving averages of gradients and their squares
    averages: Rounding = "nearest"  #: rounding of states in bfloat16

    def __post_init__(self) -> None:
        super().__post_init__()
        default = next(f.default for f in fields(self) if f.name == "averages")
        stored = (self.dtypes.factors, self.dtypes.inverse_factors, self.dtypes.moments)
        if self.averages != default and torch.bfloat16 not in stored:
            raise ConfigError(
                Fault(
                    f'averages = "{self.averages}" says how states in bfloat16 are rounded, and none is',
                    path="averages",
                    hint='remove it, or set factors or moments to "bfloat16"',
                )
            )

    @property
    @abstractmethod
    def base(self) -> Dtypes:
        """The dtypes before a setting overrides one."""

    @cached_property
    def dtypes(self) -> Dtypes:
        given: Mapping[str, Stored | None] = {
            "rows": self.rows,
            "factors": self.factors,
            "inverse_factors": self.factors,
            "moments": self.moments,
        }
        named = {role: getattr(torch, name) for role, name in given.items() if name is not None}
        return replace(self.base, **named)

    @property
    def average_rounding(self) -> Rounding:
        return self.averages

    def gram_(
        self, M: Float[Tensor, "d d"], keep: float, X: Float[Tensor, "n d"], weight: float
    ) -> Float[Tensor, "d d"]:
        return gram_(M, keep, X, weight)

    def cholesky(self, A: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b d d"]:
        return factorizations.cholesky(A)

    def inverse(self, A: Float[Tensor, "*b d d"], shift: Tensor | float = 0.0) -> Float[Tensor, "*b d d"]:
        return factorizations.inverse(A, shift)

    def eigh(self, A: Float[Tensor, "*b d d"]) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d d"]]:
        return factorizations.eigh(A)
