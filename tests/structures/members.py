"""Families and members to state laws about: families come from the registry, with their settings.

A family registered tomorrow is tested tomorrow, at every dimension from 1 to 9 and with every
combination of small values of its settings.  Beside them stands one that does the least it owes, so
that the dense fallbacks keep the same laws.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from jaxtyping import Float
from torch import Tensor

from curvlab.protocols.structure import Family, Gram, Group, Structure
from curvlab.testing.problems import normal
from curvlab.testing.reference import Lapack
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

each_registered = pytest.mark.parametrize("family", REGISTERED, ids=str)
each_family = pytest.mark.parametrize("family", FAMILIES, ids=str)
each_linear = pytest.mark.parametrize("family", [f for f in FAMILIES if f.at(9).linear], ids=str)
each_nonlinear = pytest.mark.parametrize("family", [f for f in FAMILIES if not f.at(9).linear], ids=str)
each_gram = pytest.mark.parametrize("family", GRAMS, ids=str)
each_group = pytest.mark.parametrize("family", GROUPS, ids=str)
quick = settings(max_examples=12, deadline=None, derandomize=True)
sizes, seeds = st.integers(1, 9), st.integers(0, 999)

LIKE = torch.zeros(1, dtype=torch.float64)


def symmetric(d: int, seed: int, *batch: int) -> Tensor:
    S = normal(*batch, d, d, seed=seed)
    return S + S.mT


def member(family: Family, d: int, seed: int, *batch: int, like: Tensor = LIKE) -> Any:
    """Any member: every stored scalar drawn, so symmetric only if the pattern is."""
    M = family.zeros(d, like=like, batch=batch)
    if not M.family.linear:
        return family.project(symmetric(d, seed, *batch).to(like.dtype))
    for k, t in enumerate(M.tensors().values()):
        t.copy_(normal(*t.shape, seed=seed + k))
    return M


def gram(family: Family, d: int, seed: int, rows: int | None = None) -> Structure:
    """A PSD member: the average of a Gram matrix."""
    assert isinstance(family, Gram)
    M = family.zeros(d, like=LIKE)
    family.average_(M, 0.0, normal(rows or d + 2, d, seed=seed), 1.0, Lapack())
    return M


def size(*tensors: Tensor) -> float:
    """What rounding errors of a sum of these are relative to."""
    return max(1.0, *(float(t.abs().max()) for t in tensors))
