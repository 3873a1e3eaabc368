"""Members of structure families to state laws about: any member, a Gram matrix, a few updates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvlab.protocols.structure import Family, Gram, Group, Structure
from curvlab.testing.problems import normal
from curvlab.testing.reference import Lapack

LIKE = torch.zeros(1, dtype=torch.float64)


def symmetric(d: int, seed: int, *batch: int) -> Tensor:
    """A symmetric matrix of normal numbers, or a stack of them."""
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


def updated(family: Group, K: Structure, seed: int, beta: float) -> Structure:
    """K (I − β m) with m = ½ (Π(Kᵀ XᵀX K) + Π(Kᵀ K) − I): what inverse-free methods do to a member."""
    m = family.congruence(K, normal(5, K.d, seed=seed) / 5**0.5)
    m = m.combine_(0.5, family.square(K), 0.5).shift_(-0.5)
    return K.combine_(1.0, family.product(K, m), -beta)


def updated_densely(family: Family, K: Tensor, seed: int, beta: float) -> Tensor:
    """The same of a dense matrix."""
    S = normal(5, len(K), seed=seed) / 5**0.5 @ K
    m = 0.5 * (family.project(S.mT @ S).dense() + family.project(K.mT @ K).dense() - torch.eye(len(K)))
    return K - beta * K @ m
