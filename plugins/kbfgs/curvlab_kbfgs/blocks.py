"""Square matrices along the diagonal: one of dimension d, or blocks of about equal size."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Cut:
    """Dimension d in ``blocks`` pieces of ``size``; the last one is filled up with zeros."""

    d: int
    blocks: int
    size: int

    @classmethod
    def of(cls, d: int, dense: int, size: int) -> Cut:
        """One piece up to dimension ``dense``; above, as few as there are of at most ``size``."""
        if d <= dense:
            return cls(d, 1, d)
        blocks = -(-d // size)
        return cls(d, blocks, -(-d // blocks))

    def apart(self, x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n k b"]:
        """The last axis in pieces; a view where nothing is filled up."""
        missing = self.blocks * self.size - self.d
        whole = pad(x, (0, missing)) if missing else x
        return whole.reshape(*x.shape[:-1], self.blocks, self.size)

    def together(self, x: Float[Tensor, "*n k b"]) -> Float[Tensor, "*n d"]:
        """The inverse of ``apart``."""
        return x.flatten(-2)[..., : self.d]

    def rmatmul(self, x: Float[Tensor, "n d"], M: Float[Tensor, "k b b"]) -> Float[Tensor, "n d"]:
        """``x Diag(M₁, …, M_k)``: ``2 n d b`` flops."""
        if self.blocks == 1:
            return x @ M[0]
        return self.together((self.apart(x).transpose(0, 1) @ M).transpose(0, 1))

    def products(self, M: Float[Tensor, "k b b"], x: Float[Tensor, "k b"]) -> Float[Tensor, "k b"]:
        """Each block times its own vector."""
        return (M @ x.unsqueeze(-1)).squeeze(-1)

    def gram(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "k b b"]:
        """The diagonal blocks of ``xᵀx``: ``2 n d b`` flops."""
        rows = self.apart(x).transpose(0, 1)
        return rows.mT @ rows

    def eye(self, like: Tensor) -> Float[Tensor, "k b b"]:
        """The identity."""
        return torch.eye(self.size, dtype=like.dtype, device=like.device).repeat(self.blocks, 1, 1)
