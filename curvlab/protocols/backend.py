"""Precision: in which arithmetic things are computed, stored and factorised.

The boundary is products against factorisations.  Products exist in every dtype and parts make
them freely; factorisations go through the backend, which lifts, retries and fails in one place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.protocols.arithmetic import Arithmetic


class Backend(ABC):
    """A precision.  Its settings include the device."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Dtype of parameters, activations and of the layer statistics made from them."""

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

    @abstractmethod
    def gram_(
        self, M: Float[Tensor, "d d"], keep: float, X: Float[Tensor, "n d"], weight: float
    ) -> Float[Tensor, "d d"]:
        """M ← keep · M + weight · XᵀX, accumulated in the dtype of M."""

    @abstractmethod
    def cholesky(self, A: Float[Tensor, "*b d d"]) -> Float[Tensor, "*b d d"]:
        """Lower Cholesky factor, retried in float64; raises ``NotPositiveDefinite``."""

    @abstractmethod
    def inverse(self, A: Float[Tensor, "*b d d"], shift: Tensor | float = 0.0) -> Float[Tensor, "*b d d"]:
        """``(A + shift·I)⁻¹`` for a symmetric positive definite ``A + shift·I``; A is not changed.

        Retried in float64; raises ``NotPositiveDefinite``.
        """

    @abstractmethod
    def eigh(self, A: Float[Tensor, "*b d d"]) -> tuple[Float[Tensor, "*b d"], Float[Tensor, "*b d d"]]:
        """Eigenvalues ascending, eigenvectors in columns; retried in float64."""

    def qr(self, A: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        """Orthonormal columns that span the first columns of A, however many one takes (Q of QR)."""
        wide = A if A.dtype in (torch.float32, torch.float64) else A.float()
        Q: Tensor = torch.linalg.qr(wide).Q
        return Q.to(A.dtype).contiguous()  # a restored matrix has its rows so, and products round by layout
