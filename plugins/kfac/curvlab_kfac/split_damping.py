"""KFAC's own inverse: damping split between the two factors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.errors import naming_block
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Factor, Kronecker
from curvlab.linalg.operator import BlockOperator, LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.preconditioner import Inverse
from curvlab.protocols.structure import Structure, as_gram, kronecker_blocks

#: a mean diagonal below this is an unused side: π is then 1, and a number counts as this
TRACE_FLOOR = 1e-12


@dataclass(frozen=True)
class SplitCholesky(Inverse):
    """Adds ``√λ π`` to A and ``√λ / π`` to B, ``π² = (tr A / i) / (tr B / o)`` (Martens & Grosse 2015, §6.3).

    The block is thereby damped by ``√λ (π B ⊗ I + π⁻¹ I ⊗ A) + λ I``: λ at least, and the same
    whatever the scale that A and B exchange.  A side of dimension 1 is a number and takes no damping:
    the other side takes all of it, exactly.  Where B is the identity, A takes λ, exactly.

    ``relative``: λ is in units of each block's mean curvature, ``tr A tr B / (i o)``, so that A takes
    ``√λ tr A / i`` and B ``√λ tr B / o``: the same directions whatever the scale of the loss.
    """

    separable = True
    ridged = True

    relative: bool = False

    def init(self, C: LinearOperator[BlockVector]) -> BlockDiagonal:
        blocks = kronecker_blocks(C, "split-cholesky").items()
        return BlockDiagonal({name: Kronecker(_eye(k.B), _eye(k.A)) for name, k in blocks})

    def __call__(self, C: LinearOperator[BlockVector], ctx: Context) -> BlockDiagonal:
        found: dict[str, BlockOperator] = {}
        for name, block in kronecker_blocks(C, "split-cholesky").items():
            with naming_block(name):
                made = _relative if self.relative else _inverse
                found[name] = made(name, block, ctx)
        return BlockDiagonal(found)


def _relative(name: str, block: Kronecker, ctx: Context) -> Kronecker:
    """Each side damped by a share of its own mean; one that saw nothing is taken for the identity."""
    A, B = block.A, block.B
    assert isinstance(A, Structure), "A is always estimated"
    a = A.mean_diagonal()
    damping = ctx.damping_of(name, a * B.mean_diagonal() if isinstance(B, Structure) else a)
    if not isinstance(B, Structure) or B.d == 1:
        return Kronecker(_damped(B, 0.0, ctx), _damped(A, damping, ctx))
    if A.d == 1:
        return Kronecker(_damped(B, damping, ctx), _damped(A, 0.0, ctx))
    return Kronecker(_damped(B, damping**0.5, ctx), _damped(A, damping**0.5, ctx))


def _damped(side: Factor | None, share: float | Tensor, ctx: Context) -> Factor | None:
    if not isinstance(side, Structure):
        return side
    mean = side.mean_diagonal()
    return _shifted(side, torch.where(mean > 0, share * mean, torch.ones_like(mean)), ctx)


def _inverse(name: str, block: Kronecker, ctx: Context) -> Kronecker:
    A, B, damping = block.A, block.B, ctx.damping_of(name)
    assert isinstance(A, Structure), "A is always estimated"
    if not isinstance(B, Structure):
        return Kronecker(B, _shifted(A, damping, ctx))
    a, b = A.mean_diagonal(), B.mean_diagonal()
    if B.d == 1:
        return Kronecker(_number(B, b, ctx), _shifted(A, damping / b.clamp(min=TRACE_FLOOR), ctx))
    if A.d == 1:
        return Kronecker(_shifted(B, damping / a.clamp(min=TRACE_FLOOR), ctx), _number(A, a, ctx))
    both = torch.minimum(a, b) > TRACE_FLOOR
    pi = torch.where(both, (a / b.clamp(min=TRACE_FLOOR)).sqrt(), torch.ones_like(a))
    root = damping**0.5
    return Kronecker(_shifted(B, root / pi, ctx), _shifted(A, root * pi, ctx))


def _shifted(M: Structure, shift: Tensor | float, ctx: Context) -> Factor:
    return as_gram(M.family, "split-cholesky").inverse(M, shift, ctx.backend)


def _number(M: Structure, value: Tensor, ctx: Context) -> Factor:
    """The inverse of a side of dimension 1: undamped, but never of zero, where the block is λI alone."""
    return _shifted(M, (TRACE_FLOOR - value).clamp(min=0.0), ctx)


def _eye(side: Factor | None) -> Factor | None:
    if not isinstance(side, Structure):
        return side
    return side.family.eye(side.d, like=side.like)
