"""Inverse of a sum of two Kronecker products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import UnsupportedEvidence, naming_block
from curvlab.linalg import factorizations
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.factors import powers
from curvlab.linalg.kronecker import Factor, Kronecker, KroneckerEigen, KroneckerSum
from curvlab.linalg.operator import BlockOperator, LinearOperator
from curvlab.linalg.psd import nonnegative
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.preconditioner import Inverse
from curvlab.protocols.structure import Structure

PART = "pair-eigen"


@dataclass(frozen=True)
class PairEigen(Inverse):
    """Adds λ to each of the four factors: ``[(B₁ + λI) ⊗ (A₁ + λI) + (B₂ + λI) ⊗ (A₂ + λI)]⁻¹``, exactly.

    With ``A_h = (A₁ + λI)^{-1/2}``, ``s_A, E_A`` the eigenvalues and vectors of ``A_h (A₂ + λI) A_h``,
    ``K_A = A_h E_A``, and B's likewise: ``X ↦ K_B [ (K_Bᵀ X K_A) / (1 + s_B s_Aᵀ) ] K_Aᵀ``.  Six
    eigendecompositions per block, in float64 whatever the factors are in: the sum spreads over many orders
    of magnitude.  Eigenvalues that rounding made negative are set to zero before λ is added.  It may be below
    the rounding of a factor, as 1e-8 is in float32.  One that rounding does not explain raises
    ``NotPositiveDefinite``.  A block of one Kronecker product has the second pair zero; a side that is the
    identity in both stays the identity.  Dangel, Müller and Zeinhofer 2024 (arXiv 2405.15603).
    """

    def init(self, C: LinearOperator[BlockVector]) -> BlockDiagonal:
        found: dict[str, BlockOperator] = {}
        for name, terms in _terms(C).items():
            like = _like(terms[0])
            Q_B, Q_A = _identity(terms[0].B, like), _identity(terms[0].A, like)
            lengths = [1 if Q is None else len(Q) for Q in (Q_B, Q_A)]
            found[name] = KroneckerEigen(Q_B, Q_A, like.new_ones(lengths))
        return BlockDiagonal(found)

    def __call__(self, C: LinearOperator[BlockVector], ctx: Context) -> BlockDiagonal:
        found: dict[str, BlockOperator] = {}
        for name, terms in _terms(C).items():
            with naming_block(name):
                like = _like(terms[0])
                K_B, s_B = _together([t.B for t in terms], ctx, like)
                K_A, s_A = _together([t.A for t in terms], ctx, like)
            D = (1 + torch.outer(s_B.to(s_A), s_A)).reciprocal()
            dtype = like.dtype
            K_B, K_A = (None if K is None else K.to(dtype) for K in (K_B, K_A))
            found[name] = KroneckerEigen(K_B, K_A, D.to(dtype))
        return BlockDiagonal(found)


def _terms(C: LinearOperator[BlockVector]) -> dict[str, tuple[Kronecker, ...]]:
    """One or two Kronecker products of structures for each block; raises ``UnsupportedEvidence``."""
    blocks = C.blocks if isinstance(C, BlockDiagonal) else {"": C}
    found = {}
    for name, block in blocks.items():
        terms = block.terms if isinstance(block, KroneckerSum) else (block,)
        fit = tuple(t for t in terms if isinstance(t, Kronecker))
        sides = {(t.B is None, t.A is None) for t in fit}  # alike in all terms, and not both identities
        if not (len(fit) == len(terms) <= 2 and len(sides) == 1 and (True, True) not in sides):
            got = f"{len(terms)} terms" if fit else type(block).__name__
            raise UnsupportedEvidence(PART, name, expected="curvature B₁ ⊗ A₁ + B₂ ⊗ A₂", got=got)
        found[name] = fit
    return found


def _structure(side: Factor | None) -> Structure:
    assert isinstance(side, Structure)
    return side


def _like(term: Kronecker) -> Tensor:
    """A tensor of the factors' dtype and device."""
    return _structure(term.A if term.A is not None else term.B).like


def _identity(side: Factor | None, like: Tensor) -> Float[Tensor, "d d"] | None:
    """The identity of a side's dimension; ``None`` for a side that is the identity itself."""
    return None if side is None else torch.eye(_structure(side).d, dtype=like.dtype, device=like.device)


def _together(
    sides: list[Factor | None], ctx: Context, like: Tensor
) -> tuple[Float[Tensor, "d d"] | None, Float[Tensor, " d"]]:
    """K and s with ``Kᵀ (M₁ + λI) K = I`` and ``Kᵀ (M₂ + λI) K = Diag(s)``; of identities K is ``None``."""
    spectra = []
    for side in sides:
        if side is None:
            return None, torch.full((1,), float(len(sides) - 1), dtype=torch.float64, device=like.device)
        M = _structure(side).dense()
        values, Q = factorizations.double_eigh(M)
        spectra.append((nonnegative(values, M.dtype) + ctx.damping, Q))
    values, Q = spectra[0]
    half = (Q * powers(values, -0.5)) @ Q.mT
    if len(spectra) == 1:
        return half, torch.zeros_like(values)
    values, Q = spectra[1]
    root = (half @ Q) * values.sqrt()
    s, E = factorizations.double_eigh(root @ root.mT)
    return half @ E, nonnegative(s)
