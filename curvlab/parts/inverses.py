"""Inverses of block-diagonal curvature: Kronecker products ``B ⊗ A``, and diagonals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import NotPositiveDefinite, UnsupportedEvidence, naming_block
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Factor, Kronecker, KroneckerEigen
from curvlab.linalg.operator import BlockOperator, LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.preconditioner import Inverse
from curvlab.protocols.structure import Gram, Structure, as_gram, kronecker_blocks


@dataclass(frozen=True)
class Cholesky(Inverse):
    """Adds λ to each factor: ``(B + λI)⁻¹ ⊗ (A + λI)⁻¹``.

    The block is thereby damped by ``λ(A ⊗ I + I ⊗ B) + λ²I``; where B is the identity it stays
    the identity, and the damping is exact.  One inverse per factor, about d³ flops if dense.
    ``relative``: λ is in units of each factor's mean eigenvalue.
    """

    separable = True

    relative: bool = False

    def init(self, C: LinearOperator[BlockVector]) -> BlockDiagonal:
        blocks = kronecker_blocks(C, "cholesky").items()
        return BlockDiagonal({name: Kronecker(identity_of(k.B), identity_of(k.A)) for name, k in blocks})

    def __call__(self, C: LinearOperator[BlockVector], ctx: Context) -> BlockDiagonal:
        def inverse(side: Factor | None) -> Factor | None:
            if not isinstance(side, Structure):
                return side
            shift = relative_to(side.mean_diagonal(), ctx.damping) if self.relative else ctx.damping
            return as_gram(side.family, "cholesky").inverse(side, shift, ctx.backend)

        found: dict[str, BlockOperator] = {}
        for name, block in kronecker_blocks(C, "cholesky").items():
            with naming_block(name):
                found[name] = Kronecker(inverse(block.B), inverse(block.A))
        return BlockDiagonal(found)


@dataclass(frozen=True)
class Eigen(Inverse):
    """Exact damping, ``(B ⊗ A + λI)⁻¹``, through an eigendecomposition of each factor (9–25 d³ flops).

    ``relative``: λ is in units of the block's mean eigenvalue.
    """

    separable = True
    ridged = True

    relative: bool = False

    def init(self, C: LinearOperator[BlockVector]) -> BlockDiagonal:
        found: dict[str, BlockOperator] = {}
        for name, block in kronecker_blocks(C, "eigen").items():
            Q_B, Q_A = identity_basis(block.B), identity_basis(block.A)
            D = torch.outer(_ones(block.B, block.A), _ones(block.A, block.B))
            found[name] = KroneckerEigen(Q_B, Q_A, D)
        return BlockDiagonal(found)

    def __call__(self, C: LinearOperator[BlockVector], ctx: Context) -> BlockDiagonal:
        found: dict[str, BlockOperator] = {}
        for name, block in kronecker_blocks(C, "eigen").items():
            with naming_block(name):
                b, Q_B = eigenbasis_of(block.B, ctx)
                a, Q_A = eigenbasis_of(block.A, ctx)
            b = _ones(None, block.A) if b is None else b
            a = _ones(None, block.B) if a is None else a
            C_ = torch.outer(b, a)
            mean = C_.mean() if self.relative else None
            damping = ctx.damping_of(name, mean)
            damping = damping if mean is None else relative_to(mean, damping)
            found[name] = KroneckerEigen(Q_B, Q_A, (C_ + damping).reciprocal_())
        return BlockDiagonal(found)


@dataclass(frozen=True)
class DiagonalInverse(Inverse):
    """Exact damping of a diagonal C, entry by entry: ``1 / (D + λ)``.

    For estimates whose blocks are diagonal: ``KroneckerEigen`` without bases, or Kronecker products of
    diagonal structures.  Costs two passes over the parameters and holds one number for each of them.
    """

    separable = True
    ridged = True

    def init(self, C: LinearOperator[BlockVector]) -> BlockDiagonal:
        return _diagonal({name: torch.ones_like(D) for name, D in diagonals(C).items()})

    def __call__(self, C: LinearOperator[BlockVector], ctx: Context) -> BlockDiagonal:
        found = {}
        for name, D in diagonals(C).items():
            damped = D + ctx.damping_of(name)
            if not bool(((damped > 0) & damped.isfinite()).all()):
                with naming_block(name):
                    raise NotPositiveDefinite("a diagonal with an entry that is not finite, or ≤ 0 with λ")
            found[name] = damped.reciprocal_()
        return _diagonal(found)


def diagonals(C: LinearOperator[BlockVector]) -> dict[str, Tensor]:
    """The diagonal of each block, as it multiplies the block; raises ``UnsupportedEvidence`` for others."""
    blocks = C.blocks if isinstance(C, BlockDiagonal) else {"": C}
    return {name: _diagonal_of(name, block) for name, block in blocks.items()}


def _diagonal_of(name: str, block: object) -> Tensor:
    if isinstance(block, KroneckerEigen) and block.Q_B is None and block.Q_A is None:
        return block.D
    if isinstance(block, Kronecker):
        b, a = (None if side is None else _entries(side) for side in (block.B, block.A))
        if b is not None and a is not None:
            return torch.outer(b, a)
        if a is not None and block.B is None:
            return a.unsqueeze(0)  # the same in every row
        if b is not None and block.A is None:
            return b.unsqueeze(-1)
    raise UnsupportedEvidence(
        "diagonal",
        name,
        expected="diagonal curvature",
        got=type(block).__name__,
        hint='use structures that are "diagonal", or the inverse "cholesky" or "eigen"',
    )


def _entries(side: Factor) -> Tensor | None:
    """The entries of a diagonal structure, in its family's own words; ``None`` for any other factor."""
    if not isinstance(side, Structure) or not isinstance(side.family, Gram) or side.family.rotates:
        return None
    return side.rmatmul(side.like.new_ones(1, side.d))[0]


def _diagonal(entries: Mapping[str, Tensor]) -> BlockDiagonal:
    return BlockDiagonal({name: KroneckerEigen(None, None, D) for name, D in entries.items()})


def relative_to(mean: Float[Tensor, "*b"], damping: float | Tensor) -> Float[Tensor, "*b"]:
    """λ times a mean curvature; 1 where there is none, so that what saw nothing is the identity."""
    return torch.where(mean > 0, mean * damping, torch.ones_like(mean))


def identity_of(side: Factor | None) -> Factor | None:
    """The identity in the family of ``side``."""
    if not isinstance(side, Structure):
        return side
    return side.family.eye(side.d, like=side.like)


def identity_basis(side: Factor | None) -> Float[Tensor, "d d"] | None:
    """An eigenbasis before anything is known: the identity, dense unless the family's always is."""
    if not isinstance(side, Structure) or not as_gram(side.family, "eigen").rotates:
        return None
    return torch.eye(side.d, dtype=side.like.dtype, device=side.like.device)


def eigenbasis_of(
    side: Factor | None, ctx: Context
) -> tuple[Float[Tensor, " d"] | None, Float[Tensor, "d d"] | None]:
    """Eigenvalues and eigenvectors of one side; ``None`` for the identity."""
    if not isinstance(side, Structure):
        return None, None
    return as_gram(side.family, "eigen").eigh(side, ctx.backend)


def _ones(side: Factor | None, other: Factor | None) -> Float[Tensor, " d"]:
    """Ones of the dimension of ``side``; a single one, to be broadcast, for an identity side."""
    for candidate, d in ((side, None), (other, 1)):
        if isinstance(candidate, Structure):
            return candidate.like.new_ones(candidate.d if d is None else d)
    raise AssertionError("a Kronecker product of two identities has no curvature")
