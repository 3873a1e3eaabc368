"""A precision for each phase of a run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.arithmetic import Arithmetic
from curvlab.protocols.backend import Backend, Rounding
from curvlab.protocols.dtypes import Dtypes
from curvlab.protocols.loss_scaling import LossScaling


@dataclass(frozen=True)
class Phases(Backend):
    """One precision after the other: the k-th until the fraction ``until[k]`` of the run's budget is used up.

    ``phases = ["mixed-bfloat16", "float32"]`` with ``until = [0.75]`` makes the last quarter of a run exact.
    Where precisions store a role in different dtypes, its tensors are converted, parameters included; the
    event ``precision-changed`` says so.  A copy of the parameters in float32 (``parameter_write = "master"``)
    becomes the parameters where they get as wide.
    """

    phases: tuple[Backend, ...]
    until: tuple[float, ...]  #: the fractions of the budget at which the phases but the last end

    def __post_init__(self) -> None:
        n = len(self.phases)
        if n < 2 or len(self.until) != n - 1:
            what = f"until has {len(self.until)} fractions; {n} phases need {max(n - 1, 1)}"
            hint = 'such as phases = ["bfloat16", "float32"] and until = [0.5]'
            raise ConfigError(Fault(what, path="until", hint=hint))
        if not all(a < b for a, b in pairwise((0.0, *self.until, 1.0))):
            what = f"until = {list(self.until)} must rise, between 0 and 1"
            raise ConfigError(Fault(what, path="until"))
        devices = {str(p.torch_device) for p in self.phases}
        if len(devices) > 1:
            what = f"the phases are on different devices: {', '.join(sorted(devices))}"
            raise ConfigError(Fault(what, path="phases", hint="set the same device in every phase"))
        if any(isinstance(p, Phases) for p in self.phases):
            raise ConfigError(Fault("phases do not have phases of their own", path="phases"))

    def at(self, fraction: float) -> Backend:
        return self.phases[sum(fraction >= end for end in self.until)]

    # before a run has begun, what is asked is asked of the first phase

    @property
    def dtypes(self) -> Dtypes:
        return self.phases[0].dtypes

    @property
    def torch_device(self) -> torch.device:
        return self.phases[0].torch_device

    @property
    def arithmetic(self) -> Arithmetic | None:
        return self.phases[0].arithmetic

    @property
    def evaluation(self) -> Arithmetic | None:
        return self.phases[0].evaluation

    @property
    def loss_scaling(self) -> LossScaling | None:
        return self.phases[0].loss_scaling

    @property
    def parameter_rounding(self) -> Rounding:
        return self.phases[0].parameter_rounding

    @property
    def average_rounding(self) -> Rounding:
        return self.phases[0].average_rounding

    @property
    def master(self) -> bool:
        return self.phases[0].master

    @contextmanager
    def forward(self) -> Iterator[None]:
        with self.phases[0].forward():
            yield

    def moved(self, indices: Tensor) -> Tensor:
        return self.phases[0].moved(indices)

    def gram_(
        self, M: Float[Tensor, "d d"], keep: float, X: Float[Tensor, "n d"], weight: float
    ) -> Float[Tensor, "d d"]:
        return self.phases[0].gram_(M, keep, X, weight)

    def cholesky(self, A: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b d d"]:
        return self.phases[0].cholesky(A)

    def inverse(self, A: Float[Tensor, "*b d d"], shift: Tensor | float = 0.0) -> Float[Tensor, "*b d d"]:
        return self.phases[0].inverse(A, shift)

    def eigh(self, A: Float[Tensor, "*b d d"]) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d d"]]:
        return self.phases[0].eigh(A)
