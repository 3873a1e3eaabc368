"""The families that laws are stated about: every registered one, and the least there can be.

A family registered tomorrow is tested tomorrow, with every combination of small values of its settings.
Beside them stands one that does the least it owes, so that the dense fallbacks keep the same laws.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.protocols.structure import Family, Gram, Group, Structure
from tests.limits.registered import families


@dataclass(frozen=True)
class NaiveMatrix(Structure):
    """A lower triangular Toeplitz matrix: the least that a member owes."""

    column: Float[Tensor, "*b d"]
    family: Family

    @property
    def d(self) -> int:
        return self.column.shape[-1]

    def dense(self) -> Float[Tensor, "*b d d"]:
        k = torch.arange(self.d)
        return self.column[..., (k[:, None] - k).clamp(min=0)].tril()

    def tensors(self) -> dict[str, Tensor]:
        return {"column": self.column}


@dataclass(frozen=True)
class Naive(Family, Group):
    """The least that a family closed under products owes."""

    def project(self, S: Float[Tensor, "*b d d"]) -> NaiveMatrix:
        means = [S.diagonal(-k, dim1=-2, dim2=-1).mean(-1) for k in range(S.shape[-1])]
        column = 2 * torch.stack(means, -1)
        column[..., 0] *= 0.5
        return NaiveMatrix(column, self)

    def scalars(self, d: int) -> int:
        return d

    def member(self, A: Float[Tensor, "*b d d"]) -> NaiveMatrix:
        return NaiveMatrix(A[..., 0].clone(), self)


REGISTERED = families()
FAMILIES = [*REGISTERED, Naive()]
GRAMS = [f for f in FAMILIES if isinstance(f, Gram)]
GROUPS = [f for f in FAMILIES if isinstance(f, Group)]
