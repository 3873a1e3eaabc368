"""The precision ``spectral``: another precision, and what spectral convolutions keep in float16."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.protocols.arithmetic import Arithmetic, under
from curvlab.protocols.backend import Backend, Rounding
from curvlab.protocols.dtypes import Dtypes
from curvlab.protocols.loss_scaling import LossScaling
from curvlab_operators.spectral_precision import SpectralPrecision, spectral_precision


@dataclass(frozen=True)
class SpectralArithmetic:
    """Evaluations of a model with spectral convolutions in one precision, inside of another choice."""

    spectral: SpectralPrecision
    around: Arithmetic | None = None

    @contextmanager
    def on(self) -> Iterator[None]:
        """Inside, spectral convolutions compute so."""
        with under(self.around), spectral_precision(self.spectral):
            yield


@dataclass(frozen=True)
class Spectral(Backend):
    """The precision ``of``, with spectral convolutions in ``spectral``, whatever they are set to.

    With ``of = "mixed-bfloat16"`` or ``"mixed-float16"`` signals between the layers are in 16 bits too.  As
    one of the phases of ``phases`` it makes a schedule.  It acts on passes that curvlab makes: on runs and
    on objectives.
    """

    of: Backend  #: of everything else
    spectral: SpectralPrecision  #: what spectral convolutions have in float16

    def at(self, fraction: float) -> Backend:
        found = self.of.at(fraction)
        return self if found == self.of else replace(self, of=found)

    @property
    def remark(self) -> str:
        return f"{self.of.remark} spectral {self.spectral}".strip()

    @property
    def dtypes(self) -> Dtypes:
        return self.of.dtypes

    @property
    def torch_device(self) -> torch.device:
        return self.of.torch_device

    @property
    def arithmetic(self) -> Arithmetic | None:
        return self.of.arithmetic

    @property
    def evaluation(self) -> Arithmetic | None:
        return SpectralArithmetic(self.spectral, self.of.evaluation)

    @property
    def loss_scaling(self) -> LossScaling | None:
        return self.of.loss_scaling

    @property
    def parameter_rounding(self) -> Rounding:
        return self.of.parameter_rounding

    @property
    def average_rounding(self) -> Rounding:
        return self.of.average_rounding

    @property
    def master(self) -> bool:
        return self.of.master

    def moved(self, indices: Tensor) -> Tensor:
        return self.of.moved(indices)

    def gram_(
        self, M: Float[Tensor, "d d"], keep: float, X: Float[Tensor, "n d"], weight: float
    ) -> Float[Tensor, "d d"]:
        return self.of.gram_(M, keep, X, weight)

    def cholesky(self, A: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b d d"]:
        return self.of.cholesky(A)

    def inverse(self, A: Float[Tensor, "*b d d"], shift: Tensor | float = 0.0) -> Float[Tensor, "*b d d"]:
        return self.of.inverse(A, shift)

    def eigh(self, A: Float[Tensor, "*b d d"]) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d d"]]:
        return self.of.eigh(A)

    def qr(self, A: Float[Tensor, "*b d k"], *, complete: bool = False) -> Float[Tensor, "*b d p"]:
        return self.of.qr(A, complete=complete)
