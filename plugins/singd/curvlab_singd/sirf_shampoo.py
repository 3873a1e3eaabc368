"""Preconditioner: Shampoo without roots and without inverses, one factor per axis of each gradient."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker
from curvlab.linalg.modes import ModeProducts, on_axis
from curvlab.linalg.operator import BlockOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Fraction, Limit, NotNegative, check_bounds
from curvlab.protocols.cadence import Interval, is_due
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.schedule import Schedule, at_step
from curvlab.protocols.storage import Storage
from curvlab.protocols.structure import Family, Structure, as_group
from curvlab.structures.work import work_of_axes
from curvlab_singd.update import move

PART = "sirf-shampoo"


@dataclass
class Modes:
    """One block's factors, one per axis of its gradient, and their log-space momenta (none: empty)."""

    K: list[Structure]
    m: list[Structure]

    @property
    def shape(self) -> tuple[int, ...]:
        """The gradient's shape; a number has one axis of dimension 1."""
        return tuple(factor.d for factor in self.K)


@dataclass(frozen=True)
class SirfShampoo(Preconditioner[dict[str, Modes]]):
    """``x`` = g with ``K_j K_jᵀ`` on every axis j of a block; needs the gradient alone, treats any block.

    SIRF-Shampoo (Lin et al. 2024, arXiv 2402.03496; specs 10).  For a block of shape ``d_1, …, d_N`` and
    axis n, ``X_n`` is the gradient times ``√examples`` with ``K_jᵀ`` on every *other* axis j, unfolded to
    ``[Π_{j≠n} d_j, d_n]``; every ``every``-th step, the first included, all axes from the old factors:

        step_n = ½ Π[ K_nᵀ X_nᵀ X_n K_n / Π_{j≠n} d_j + λ Π_{j≠n} avg(K_jᵀ K_j) K_nᵀ K_n − I ]
        m_n ← α m_n + (1 − α) step_n ;   K_n ← K_n (I − β m_n)

    α is ``momentum``.  λ acts on the product of all factors: a block of one number rests at
    ``Π_j K_j² = 1/(examples · g² + λ)``.  The gradient is that of the batch mean, so that ``examples`` times
    its square estimates, without a per-example gradient, the second moment of the examples' gradients.

    ``β = min(lr, limit) / max(1, ‖m_n‖_F)``, as published; then no step changes any direction of a factor
    by more than the fraction lr, and ``limit`` matters only to rates above it.  The Frobenius norm grows
    with √d, so that the factors of wide axes move slowly.  With ``normalized = false`` the norm is the
    spectral one, ``β = lr``, and m_n is shortened until ``‖β m_n‖₂ ≤ limit``, as in ``singd``.

    State: K, and as much again with momentum.  An update of a block of D entries costs, with
    dense factors, ``2 D Σ_j d_j`` flops for each of the N axes, once more ``2 D Σ_j d_j`` and ``4 Σ_j d_j³``;
    an application, two products with each factor.
    """

    separable = True

    K: Family
    lr: NotNegative | Schedule = 0.01
    momentum: Fraction = 0.5
    every: Interval = 1
    normalized: bool = True
    limit: Limit = 0.5

    def __post_init__(self) -> None:
        as_group(self.K, PART)
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(examples=True) if is_due(step, self.every) else Needs(factored=True)

    def joins(self, layer: str) -> bool:
        return True

    def work(self, block: Block) -> float:
        shape = tuple(block.shape) or (1,)
        return work_of_axes(shape, [self.K] * len(shape))

    def fallible(self, state: dict[str, Modes], step: int) -> bool:
        return is_due(step, self.every)

    def init(self, like: BlockVector, ctx: Context) -> dict[str, Modes]:
        state, empty = {}, ctx.like(like, "inverse_factors")
        for name, shape in like.layout.shapes.items():
            pairs = [(self.K.at(d), d) for d in tuple(shape) or (1,)]
            K = [family.eye(d, like=empty) for family, d in pairs]
            m = [family.zeros(d, like=empty) for family, d in pairs] if self.momentum else []
            state[name] = Modes(K, m)
        return state

    def observe(self, state: dict[str, Modes], seen: Evaluation, ctx: Context) -> None:
        if not is_due(ctx.step, self.every):
            return
        lr = at_step(self.lr, ctx.step)
        for name, modes in state.items():
            self._update(modes, seen.gradient[name], seen.examples, ctx, lr)

    def apply(self, state: dict[str, Modes], v: BlockVector, ctx: Context) -> Solve:
        blocks: dict[str, BlockOperator] = {}
        for name, modes in state.items():
            factors = tuple(as_group(K.family, PART).gramian(K) for K in modes.K)
            matrix = len(v.layout.shapes[name]) == 2
            blocks[name] = Kronecker(*factors) if matrix else ModeProducts(modes.shape, factors)
        return Solve(ctx.product(BlockDiagonal(blocks), v, "inverse_factors"))

    def _update(self, modes: Modes, gradient: Tensor, examples: int, ctx: Context, lr: float) -> None:
        """One step of a block's factors, each from the others' old values; m and K change in place."""
        groups = [as_group(K.family, PART) for K in modes.K]
        squares = [group.square(K) for group, K in zip(groups, modes.K, strict=True)]
        sizes = [square.mean_diagonal() for square in squares]
        damping, storage = ctx.damping, ctx.storage
        G, Hs, weights = gradient.reshape(modes.shape).to(modes.K[0].like.dtype), [], []
        for n, (group, K) in enumerate(zip(groups, modes.K, strict=True)):
            X = unfolded(G, modes.K, n)
            Hs.append(group.congruence(K, X * (examples / len(X)) ** 0.5))  # scaled first: H stays near I
            weights.append(damping * math.prod(sizes[:n] + sizes[n + 1 :], start=torch.ones_like(sizes[n])))
        damped = [H.mean_diagonal() + w * size for H, w, size in zip(Hs, weights, sizes, strict=True)]
        if not bool(torch.isfinite(torch.stack(damped)).all()):
            return  # an observation that overflowed would stay in K and m for good
        share = 0.5 * (1 - self.momentum)
        for n, (H, square, w) in enumerate(zip(Hs, squares, weights, strict=True)):
            keep, held = self.momentum, modes.m[n] if modes.m else None

            def add(m: Structure, H: Structure = H, square: Structure = square, w: Tensor = w) -> None:
                m = m.scale_(share) if held is None else m.combine_(keep, H, share)  # noqa: B023
                m.combine_(1.0, square, share * w).shift_(-share)

            m = storage.change_(H if held is None else held, add)
            self._move(modes.K[n], m, lr, storage)

    def _move(self, K: Structure, m: Structure, lr: float, storage: Storage) -> None:
        if not self.normalized:
            move(K, m, lr, 1, self.limit, storage)
            return
        beta = min(lr, self.limit) / m.norm().clamp(min=1.0)
        change = as_group(K.family, PART).product(K, m)
        storage.change_(K, lambda K: K.combine_(1.0, change, -beta))


def unfolded(G: Tensor, K: list[Structure], n: int) -> Float[Tensor, "r d"]:
    """G with ``K_jᵀ`` on every axis j but n, as rows: axis n is last, the others are one."""
    for j, factor in enumerate(K):
        if j != n:
            G = on_axis(G, j, factor.rmatmul)
    return G.movedim(n, -1).reshape(-1, G.shape[n])
