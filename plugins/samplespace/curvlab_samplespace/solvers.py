"""Solvers of ``(JJᵀ + λI) c = r`` and of its mirror image in the parameters.

A solver is made once per step and serves all right-hand sides and dampings of that step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg import factorizations
from curvlab.linalg.psd import nonnegative
from curvlab.linalg.vectors import BlockVector
from curvlab_samplespace.jacobian import Jacobian


class Solver(ABC):
    """What a step's Jacobian was factorized into."""

    @abstractmethod
    def combined(self, r: Float[Tensor, " m"], damping: float) -> BlockVector:
        """``Jᵀ (JJᵀ + λI)⁻¹ r``, a fresh vector."""

    def shift(self, damping: float) -> float:
        """The λ that is used for this one."""
        return damping


@dataclass(frozen=True)
class Spectral(Solver):
    """``J = U diag(s) Wᵀ`` with k directions: all dampings at the cost of one.

    ``squares`` are s²; directions with s² of at most ``least`` are rounding and are left out.  In parameter
    space W ``[P, k]`` is held, in sample space U ``[m, k]``, and then ``Jᵀ U w`` is a product with J.
    ``own`` are the coefficients ``Uᵀ r`` of the residual ``r`` that the solver was made with.
    """

    J: Jacobian
    squares: Float[Tensor, " k"]
    U: Float[Tensor, "m k"] | None
    W: Float[Tensor, "P k"] | None
    least: float
    r: Float[Tensor, " m"]
    own: Float[Tensor, " k"]

    def coefficients(self, r: Float[Tensor, " m"]) -> Float[Tensor, " k"]:
        """``Uᵀ r``, zero for directions that are rounding."""
        if r is self.r:
            return self.own
        if self.U is not None:
            return self.U.mT @ r.to(self.U.dtype)
        assert self.W is not None
        pulled = self.J.transposed(r.to(self.J.like.dtype)).flat.to(self.W.dtype)
        return torch.where(self.squares > self.least, (self.W.mT @ pulled) / self.squares.sqrt(), 0.0)

    def back(self, w: Float[Tensor, " k"]) -> BlockVector:
        """``Jᵀ U w``."""
        if self.U is not None:
            return self.J.unscaled(self.J.transposed((self.U @ w).to(self.J.like.dtype)))
        assert self.W is not None
        flat = self.W @ (self.squares.sqrt() * w)
        return self.J.unscaled(BlockVector(self.J.layout, flat.to(self.J.like.dtype)))

    def image(self, v: BlockVector) -> Float[Tensor, " k"]:
        """``Uᵀ J v`` for a vector in the parameters' own units."""
        measured = self.J.measured(v)
        if self.W is not None:
            return self.squares.sqrt() * (self.W.mT @ measured.flat.to(self.W.dtype))
        assert self.U is not None
        return self.U.mT @ self.J.times(measured).to(self.U.dtype)

    def inverse(self, damping: float) -> Float[Tensor, " k"]:
        """``1/(s² + λ)``, zero for directions that are rounding."""
        found = (self.squares + damping).reciprocal()
        return torch.where(self.squares > self.least, found, 0.0)

    def combined(self, r: Float[Tensor, " m"], damping: float) -> BlockVector:
        return self.back(self.coefficients(r) * self.inverse(damping))


@dataclass(frozen=True)
class Cholesky(Solver):
    """The kernel JJᵀ, factorized anew for each damping: ``m³/3`` flops in float64.

    The damping is at least ``floor`` times the kernel's largest eigenvalue, bounded by its largest row sum.
    """

    J: Jacobian
    K: Float[Tensor, "m m"]
    floor: float

    def shift(self, damping: float) -> float:
        return max(damping, self.floor * float(torch.linalg.matrix_norm(self.K, ord=float("inf"))))

    def combined(self, r: Float[Tensor, " m"], damping: float) -> BlockVector:
        c = factorizations.solve_shifted(self.K, self.shift(damping), r)
        return self.J.unscaled(self.J.transposed(c.to(self.J.like.dtype)))


@dataclass(frozen=True)
class Nystrom(Solver):
    """A randomized rank-k approximation ``U diag(s²) Uᵀ`` of the kernel, with the rest of it as λ.

    ``(K + λI)⁻¹ r ≈ U (s² + λ)⁻¹ Uᵀ r + (s_k² + λ)⁻¹ (r − U Uᵀ r)``: what the approximation leaves out has
    eigenvalues below its smallest one, s_k² (Frangella, Tropp and Udell 2023, arXiv 2110.02820, §5.1).
    """

    J: Jacobian
    squares: Float[Tensor, " k"]
    U: Float[Tensor, "m k"]

    def combined(self, r: Float[Tensor, " m"], damping: float) -> BlockVector:
        r = r.to(self.U.dtype)
        inside = self.U.mT @ r
        rest = 1.0 / (float(self.squares.min()) + damping)
        c = self.U @ (inside / (self.squares + damping) - inside * rest) + r * rest
        return self.J.unscaled(self.J.transposed(c.to(self.J.like.dtype)))


def spectral_in_samples(J: Jacobian, r: Float[Tensor, " m"]) -> Spectral:
    """By an eigendecomposition of JJᵀ in float64: about ``9 m³`` flops."""
    K = J.gram()
    values, U = factorizations.double_eigh(K)
    rounding = torch.finfo(K.dtype).eps * J.rows * float(values[-1].clamp(min=0.0))
    return Spectral(J, nonnegative(values, K.dtype), U, None, rounding, r, U.mT @ r.to(U.dtype))


def spectral_in_parameters(J: Jacobian, r: Float[Tensor, " m"]) -> Spectral:
    """By singular values of J: ``2 m P² + 20 P³`` flops for m > P rows, and none of J's digits lost."""
    A = J.dense().double()
    s, Wt, own = factorizations.singular_system(A, r.double())
    largest = float(s[0]) if len(s) else 0.0
    rounding = (torch.finfo(J.like.dtype).eps * max(A.shape) * largest) ** 2
    return Spectral(J, s.square(), None, Wt.mT, rounding, r, own)


def cholesky_in_samples(J: Jacobian) -> Cholesky:
    """By Cholesky factors of JJᵀ in float64."""
    K = J.gram()
    return Cholesky(J, K, torch.finfo(K.dtype).eps * J.rows)


def nystrom(J: Jacobian, rank: int, generator: torch.Generator) -> Nystrom:
    """From ``rank`` random rows of the kernel's range: 2 ``rank`` products with J, memory ``m rank``."""
    m = J.rows
    draws = torch.randn(m, min(rank, m), dtype=torch.float64, generator=generator, device=J.like.device)
    Q = factorizations.qr(draws)
    like = J.like.dtype
    Y = torch.stack([J.times(J.transposed(q.to(like))).double() for q in Q.mT], 1)
    shift = torch.finfo(like).eps * float(torch.linalg.matrix_norm(Y)) * m**0.5
    Y = Y + shift * Q
    C = factorizations.cholesky((Q.mT @ Y + (Q.mT @ Y).mT) / 2)
    B = factorizations.solve_triangular(C, Y.mT, upper=False).mT
    U, s, _ = factorizations.svd(B)
    return Nystrom(J, (s.square() - shift).clamp(min=0.0), U)
