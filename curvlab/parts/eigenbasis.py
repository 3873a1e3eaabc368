"""Preconditioner = second moments in a Kronecker eigenbasis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import UnsupportedEvidence, naming_block
from curvlab.linalg.averages import newest_weight
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import KroneckerEigen
from curvlab.linalg.lookups import Lookups
from curvlab.linalg.operator import BlockOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.linalg.work import work_dtype
from curvlab.parts.inverses import eigenbasis_of, identity_basis, relative_to
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Fraction, check_bounds
from curvlab.protocols.cadence import Interval, is_due
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation, LayerStats, Solve
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.preconditioner import HeldCurvature, Preconditioner
from curvlab.protocols.reader import products, squared
from curvlab.protocols.structure import kronecker_blocks

#: entries of per-example gradients held at once when positions are shared: 64 MiB of float32
CHUNK = 1 << 24


@dataclass
class Basis:
    """Orthogonal eigenvectors of both sides of one block; ``None`` is the identity."""

    Q_B: Float[Tensor, "o o"] | None
    Q_A: Float[Tensor, "i i"] | None

    def to(self, dtype: torch.dtype) -> Basis:
        """The same vectors in another dtype."""
        return Basis(*(None if Q is None else Q.to(dtype) for Q in (self.Q_B, self.Q_A)))


@dataclass
class EigenState:
    """The estimate and the moments change on observing steps, the basis on refreshing ones."""

    estimate: Any
    basis: dict[str, Basis]
    moments: BlockVector
    observed: dict[str, int]  #: by block: how often it had statistics


@dataclass(frozen=True)
class Eigenbasis(Preconditioner[EigenState]):
    """EKFAC (George et al. 2018, arXiv 1806.03884): KFAC's eigenbasis, its eigenvalues re-estimated.

    ``x = Q_B [ (Q_Bᵀ g Q_A) / (S + λ) ] Q_Aᵀ`` with ``S = E_n Σ_v [(Q_Bᵀ (Σ_s g aᵀ) Q_A)²]``, the
    Frobenius-nearest diagonal in that basis.  S is a moving average normalized by the sum of its
    weights; when the basis turns (on the observing steps that ``refresh_every`` divides), S is
    re-projected: ``S' = (Q'ᵀQ)² S`` on both sides.  λ is added to S: exact damping; with ``relative`` it
    is in units of each block's mean of S.
    """

    separable = True

    estimator: CurvatureEstimator[Any]
    decay: Fraction = 0.95
    observe_every: Interval = 1
    refresh_every: Interval = 1
    relative: bool = False

    def __post_init__(self) -> None:
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        """The estimator's needs in the steps that observe, nothing beside the gradient in others."""
        keep = Needs(factored=True)
        return self.estimator.needs() | keep if is_due(step, self.observe_every) else keep

    def work(self, block: Block) -> float:
        return self.estimator.work(block)

    @property
    def ridged(self) -> bool:
        return True

    def joins(self, layer: str) -> bool:
        return self.estimator.by_layer

    def refuses(self, block: Block) -> str | None:
        return self.estimator.refuses(block)

    def fallible(self, state: EigenState, step: int) -> bool:
        return is_due(step, self.observe_every)

    def init(self, like: BlockVector, ctx: Context) -> EigenState:
        """Moments begin at 1, so a block that was not observed yet is not divided by λ alone."""
        estimate = self.estimator.init(like, ctx)
        blocks = kronecker_blocks(self.estimator.curvature(estimate), "eigenbasis")
        basis = {n: Basis(identity_basis(k.B), identity_basis(k.A)) for n, k in blocks.items()}
        moments = ctx.zeros(like, "factors")
        moments.flat.fill_(1.0)  # until a block is observed, it is not divided by λ alone
        return EigenState(estimate, basis, moments, dict.fromkeys(like.layout.names, 0))

    def observe(self, state: EigenState, seen: Evaluation, ctx: Context) -> None:
        if not is_due(ctx.step, self.observe_every):
            return
        self.estimator.observe(state.estimate, seen, ctx)
        if is_due(ctx.step, self.refresh_every):
            self._turn(state, ctx)  # before the moments, which are to be taken in the new basis
        (labels,) = self.estimator.needs().layers
        for name, terms in seen.layers[labels].items():
            if name in state.basis:
                state.observed[name] += 1
                weight = newest_weight(self.decay, state.observed[name])
                work = work_dtype(state.moments.dtype)
                present = [t for t in terms if len(t.inputs)] or terms[:1]
                basis = state.basis[name].to(work)
                fresh = torch.stack([_moments(name, t.to(work), basis, labels) for t in present]).sum(0)
                ctx.storage.updated_(state.moments[name], lambda S: S.lerp_(fresh, weight))  # noqa: B023

    def curvature(self, state: EigenState) -> HeldCurvature:
        blocks = {n: KroneckerEigen(b.Q_B, b.Q_A, state.moments[n]) for n, b in state.basis.items()}
        return HeldCurvature(blocks, state.observed)

    def apply(self, state: EigenState, v: BlockVector, ctx: Context) -> Solve:
        inverse: dict[str, BlockOperator] = {}
        for name, basis in state.basis.items():
            S = state.moments[name]
            mean = S.mean() if self.relative else None
            damping = ctx.damping_of(name, mean)
            damping = damping if mean is None else relative_to(mean, damping)
            D = (S + damping).reciprocal_()
            inverse[name] = KroneckerEigen(basis.Q_B, basis.Q_A, D)
        return Solve(ctx.product(BlockDiagonal(inverse), v, "factors"))

    def _turn(self, state: EigenState, ctx: Context) -> None:
        blocks = kronecker_blocks(self.estimator.curvature(state.estimate), "eigenbasis")
        for name, block in blocks.items():
            old = state.basis[name]
            with naming_block(name):
                new = Basis(eigenbasis_of(block.B, ctx)[1], eigenbasis_of(block.A, ctx)[1])
            work = work_dtype(state.moments.dtype)
            S, here, there = state.moments[name].to(work), old.to(work), new.to(work)
            if there.Q_B is not None and here.Q_B is not None:
                S = (there.Q_B.mT @ here.Q_B).square_() @ S
            if there.Q_A is not None and here.Q_A is not None:
                S = S @ (here.Q_A.mT @ there.Q_A).square_()
            ctx.storage.write_(state.moments[name], S)
            state.basis[name] = new


def _moments(name: str, term: LayerStats, basis: Basis, labels: Labels) -> Float[Tensor, "o i"]:
    """Mean over examples of the squared per-example gradient in the basis, summed over vectors."""
    a, g = term.inputs, term.grads
    if g is None:
        raise UnsupportedEvidence("eigenbasis", name, "output gradients", f'labels = "{labels}"')
    v, n, s, o = g.shape
    n = max(n, 1)
    i = a.shape[-1]
    if isinstance(a, Lookups):  # their factor is diagonal, and so its basis the identity
        return squared(a, _turned(g, basis.Q_B), CHUNK).div_(n)
    if s == a.shape[1] == 1:
        a, g = _turned(a, basis.Q_A), _turned(g, basis.Q_B)
        return (g.square().sum(0)[:, 0].mT @ a[:, 0].square()).div_(n)
    first = s == a.shape[1] and s < min(o, i)  # turn the few rows, or else the products of the many
    if first:
        a, g = _turned(a, basis.Q_A), _turned(g, basis.Q_B)
    sums = g.new_zeros(o, i)
    step = max(1, CHUNK // (v * o * i))
    for k in range(0, n, step):
        each = products(a[k : k + step], g[:, k : k + step])
        if not first:
            each = _turned(_turned(each, basis.Q_A).mT, basis.Q_B).mT
        sums += each.square().sum((0, 1))
    return sums.div_(n)


def _turned(rows: Float[Tensor, "*r d"], Q: Tensor | None) -> Float[Tensor, "*r d"]:
    return rows if Q is None else rows @ Q
