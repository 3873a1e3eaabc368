"""Precisions: the dtypes of training, and the device."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.linalg import factorizations
from curvlab.linalg.gram import gram_
from curvlab.protocols.backend import Backend, Rounding
from curvlab.protocols.dtypes import Dtypes

#: dtypes of what a step stores, as settings name them
Stored = Literal["bfloat16", "float32", "float64"]


@dataclass(frozen=True, kw_only=True)
class Precision(Backend):
    """What precisions share: factorizations, the device, and dtypes of single roles.

    Subclasses say the dtypes (``base``).  A role's setting overrides what they say of it.  ``averages`` is
    how states in bfloat16 are rounded; by chance, an average moves on even where its increments are below
    half a unit in the last place.
    """

    device: str = "cpu"  #: a torch device: "cpu", "cuda", "cuda:1"
    rows: Stored | None = None  #: dtype of rows of layer statistics; unset: as they are captured
    factors: Stored | None = None  #: dtype of curvature factors and of factors of inverses, all of them
    moments: Stored | None = None  #: dtype of moving averages of gradients and their squares
    averages: Rounding = "nearest"  #: rounding of states in bfloat16

    def __post_init__(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of names that torch gave up, which are refused below
                device = torch.device(self.device)
        except RuntimeError:
            raise ConfigError(
                Fault(f"device = {self.device!r} is not a torch device", hint='use "cpu", "cuda" or "cuda:0"')
            ) from None
        if not _is_here(device):
            names = ["cpu", *(f"{kind}:{i}" for kind, count in _accelerators().items() for i in range(count))]
            here = ", ".join(f'"{name}"' for name in names)
            raise ConfigError(
                Fault(f"device = {self.device!r} is not available on this machine", hint=f"available: {here}")
            )

    @property
    def base(self) -> Dtypes:
        """The dtypes before a setting overrides one."""
        raise NotImplementedError

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
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

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


def _is_here(device: torch.device) -> bool:
    """Whether torch can compute on the device here: it knows many names, and ``meta`` holds no numbers."""
    return device.type == "cpu" or (device.index or 0) < _accelerators().get(device.type, 0)


def _accelerators() -> dict[str, int]:
    """How many devices there are of the one type that this torch computes on beside the CPU."""
    if not torch.accelerator.is_available():
        return {}
    found = torch.accelerator.current_accelerator()
    return {found.type: torch.accelerator.device_count()} if found is not None else {}
