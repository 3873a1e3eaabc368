"""Precision: in which arithmetic numbers are computed, stored and factorized.

The boundary is products against factorizations.  Products exist in every dtype and parts make
them freely; factorizations go through the backend, which lifts, retries and fails in one place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg import factorizations
from curvlab.protocols.arithmetic import Arithmetic, under
from curvlab.protocols.dtypes import Dtypes
from curvlab.protocols.loss_scaling import LossScaling

Rounding = Literal["nearest", "stochastic"]


class Backend(ABC):
    """A precision.  Its settings include the device."""

    @property
    @abstractmethod
    def dtypes(self) -> Dtypes:
        """The dtype of each role."""

    @property
    @abstractmethod
    def torch_device(self) -> torch.device:
        """Where the model and every state live."""

    @property
    def arithmetic(self) -> Arithmetic | None:
        """What the method's own computations are made under; ``None`` where torch's choice stands."""
        return None

    @property
    def evaluation(self) -> Arithmetic | None:
        """What evaluations of the model are made under, inside of ``arithmetic``; ``None``: no difference."""
        return None

    def moved(self, indices: Tensor) -> Tensor:
        """Indices of a batch, drawn on the host; on the device already, if that is worth a transfer here."""
        return indices

    def at(self, fraction: float) -> Backend:
        """The precision when this fraction of a run's budget is used up: itself, unless it has phases."""
        return self

    @property
    def remark(self) -> str:
        """What its dtypes do not say of it, for messages."""
        return ""

    @contextmanager
    def forward(self) -> Iterator[None]:
        """The context of every pass through the model: autocast, where passes have a dtype of their own."""
        compute = self.dtypes.compute
        cast = nullcontext() if compute is None else torch.autocast(self.torch_device.type, dtype=compute)
        with under(self.arithmetic, self.evaluation), cast:
            yield

    @property
    def loss_scaling(self) -> LossScaling | None:
        """How losses are scaled before they are differentiated, if they are."""
        return None

    @property
    def parameter_rounding(self) -> Rounding:
        """How a parameter in bfloat16 is rounded when a step writes it."""
        return "nearest"

    @property
    def average_rounding(self) -> Rounding:
        """How a state in bfloat16 is rounded."""
        return "nearest"

    @property
    def master(self) -> bool:
        """Whether steps write to a copy of the parameters in the working dtype, to be rounded."""
        return False

    @abstractmethod
    def gram_(
        self, M: Float[Tensor, "d d"], keep: float, X: Float[Tensor, "n d"], weight: float
    ) -> Float[Tensor, "d d"]:
        """M ← keep · M + weight · XᵀX, accumulated in the dtype of M."""

    @abstractmethod
    def cholesky(self, A: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b d d"]:
        """Lower Cholesky factor, in float32 or wider, retried in float64; raises ``NotPositiveDefinite``."""

    @abstractmethod
    def inverse(self, A: Float[Tensor, "*b d d"], shift: Tensor | float = 0.0) -> Float[Tensor, "*b d d"]:
        """``(A + shift·I)⁻¹`` for a symmetric positive definite ``A + shift·I``; A is not changed.

        Retried in float64; raises ``NotPositiveDefinite``.
        """

    @abstractmethod
    def eigh(self, A: Float[Tensor, "*b d d"]) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d d"]]:
        """Eigenvalues ascending, eigenvectors in columns; retried in float64."""

    def qr(self, A: Float[Tensor, "*b d k"], *, complete: bool = False) -> Float[Tensor, "*b d p"]:
        """Orthonormal columns that span the first columns of A, however many one takes (Q of QR).

        ``complete``: d columns, the others orthogonal to all of A.
        """
        return factorizations.qr(A, complete=complete)
