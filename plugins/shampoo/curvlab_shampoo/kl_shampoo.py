"""Preconditioner: the inverse root of a Kronecker-factored covariance of the gradient, KL-optimal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.cadence import is_due
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.structure import Family
from curvlab.structures.diagonal import Diagonal
from curvlab_shampoo.bases import turned, turned_as_held, turned_back
from curvlab_shampoo.grams import axes
from curvlab_shampoo.moments import InEigenbases, Moments
from curvlab_shampoo.whitening import average_whitened_, inverse_roots, on_axes


@dataclass(kw_only=True)
class KlShampooState(Moments):
    """Moments along each axis, their eigenbases and eigenvalues."""

    begun: bool = False  #: whether there were bases to turn


@dataclass(frozen=True)
class KlShampoo(InEigenbases[KlShampooState]):
    """``x`` = v with ``(S_n + λ avg(S_n) I)^{-1/2}`` on every axis n; needs the gradient alone, any block.

    ``S_1 ⊗ … ⊗ S_N`` is the covariance of the gradient (about zero) of least Kullback–Leibler divergence:
    the moving average S_n of ``G_(n) (⊗_{m≠n} S_m)⁻¹ G_(n)ᵀ d_n / D``, every gradient G being whitened by
    what the others were before it.  For a matrix ``S_a`` averages ``G S_b⁻¹ Gᵀ / d_b`` and ``S_b`` averages
    ``Gᵀ S_a⁻¹ G / d_a``.  KL-Shampoo (Lin et al. 2025, arXiv 2509.03378).  Needs neither grafting nor second
    moments of entries: those of x have about the size of Adam's.

    λ is relative: in units of the mean eigenvalue of each S_n, where gradients are whitened too.  After k
    gradients ``λ + 1/k`` takes its place: the first ones show few directions, and what they whiten in the
    others would outweigh all that follows.  x does not change when all gradients are scaled.

    S_n is held as itself, an orthogonal ``Q_n``, and ``diag(Q_nᵀ S_n Q_n)``, which stands for its
    eigenvalues.  They change with every observed gradient, and Q_n as in ``soap``: the first gradient only
    starts the moments, eigenvectors come with the second, and a power iteration with every
    ``refresh_every``-th step.  With K diagonal no axis turns, and the first gradient moves parameters.  Other
    structures of K bound S_n as they do for ``shampoo``; with ``one_sided`` all axes but the shortest of a
    block are diagonal.  A block of one axis is diagonal, ``x = v / √v̂`` as Adam's, unless ``vectors``: then
    it is whitened as a whole.

    State: ``2 d² + d`` scalars per axis if K is dense, and nothing per entry.  Costs, with a block of D
    entries, ``2·D·Σ d_n`` flops to turn a gradient and ``3.2·D·Σ d_n`` to average it (less while it is
    held as factors), ``4·D·Σ d_n`` to apply, and ``16/3 d³`` per axis to refresh.
    """

    part: ClassVar[str] = "kl-shampoo"

    def _families(self, shape: tuple[int, ...]) -> list[Family | None]:
        return [F or Diagonal() for F in super()._families(shape)]

    def fallible(self, state: KlShampooState, step: int) -> bool:
        return not state.begun or is_due(step, self.refresh_every)

    def init(self, like: BlockVector, ctx: Context) -> KlShampooState:
        return KlShampooState(**self._moments(like, ctx, valued=True))

    def observe(self, state: KlShampooState, seen: Evaluation, ctx: Context) -> None:
        first = state.observed == 0
        if not self._waits(state):
            for _ in self._turn_bases(state, ctx, begun=state.begun):
                pass  # no entry of a state is in the order of the columns
            state.begun = True
        if not first and not is_due(ctx.step, self.observe_every):
            return
        damping = self._damping(state, ctx)
        weight, g = self._weight(state), seen.gradient.to(ctx.backend.dtypes.factors)
        for name, bases in state.bases.items():
            block, values, grams = g.factored(name), state.values[name], state.grams[name]
            held = turned_as_held(block, bases)
            average_whitened_(grams, bases, values, block, held, weight, damping, ctx, self.part)

    def ready(self, state: KlShampooState) -> bool:
        return state.begun

    def apply(self, state: KlShampooState, v: BlockVector, ctx: Context) -> Solve:
        v, wanted = v.to(ctx.backend.dtypes.factors), v.dtype
        x, damping = v.empty_like(), self._damping(state, ctx)
        for name, bases in state.bases.items():
            T = turned(v.factored(name), bases)
            roots = inverse_roots([e.to(T.dtype) for e in state.values[name]], damping)
            whitened = on_axes(T.reshape(axes(T.shape)), roots).reshape(T.shape)
            turned_back(whitened, bases, x[name])
        return Solve(x.to(wanted))
