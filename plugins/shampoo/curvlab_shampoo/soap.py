"""Preconditioner: Adam's second moment, in the eigenbasis of the gradient's moments along each axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from curvlab.linalg.averages import newest_weight
from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Fraction, NotNegative
from curvlab.protocols.cadence import is_due
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab_shampoo.bases import turned, turned_as_held, turned_back
from curvlab_shampoo.grams import average_, axes
from curvlab_shampoo.moments import InEigenbases, Moments
from curvlab_shampoo.whitening import average_whitened_

#: of the rounding unit times ‖√v̂‖: where √v̂ is smaller, turned gradients are rounding, and count as zero
UNSEEN = 16.0

#: an eps below this may turn a gradient without a second moment into infinity
LEAST_EPS = 1e-16


@dataclass(kw_only=True)
class SoapState(Moments):
    """Moments along each axis, their eigenbases, and the gradient's mean square in those."""

    second: BlockVector
    count: int = 0  #: gradients that ``second`` has seen


@dataclass(frozen=True)
class Soap(InEigenbases[SoapState]):
    """``x = Q [ (Qᵀ g) / (√v̂ + eps) ]``, v̂ the mean of ``(Qᵀ g)²``; λ is not used with plain moments.

    SOAP (Vyas et al. 2024, arXiv 2409.11321): Adam in Shampoo's eigenbasis.  Q has a factor ``Q_n`` on
    every axis n, eigenvectors of the moving average L_n of ``G_(n) G_(n)ᵀ``, G_(n) being the gradient with
    axis n for rows.  All averages are normalized by the sum of their weights, as Adam's bias correction
    does.  With K diagonal, Q is the identity and this is Adam.

    With ``moments = "whitened"`` L_n averages gradients that are whitened along all other axes, as in
    ``kl-shampoo``: KL-SOAP (Lin et al. 2025, arXiv 2509.03378).  λ is the damping of that whitening, as
    there.  With ``one_sided`` only the shortest axis of a block turns.

    A gradient is turned by bases that come from the gradients before it: in its own eigenbasis it would be
    diagonal, and the rounding beside the diagonal be divided by its own size.  So the first gradient only
    starts the moments L_n: no parameter moves, and neither v̂ nor the momentum sees it (``ready``), as in
    the authors' code.  Where no axis turns there is nothing to wait for, and the first step is Adam's.  The
    first bases, for the second gradient, come from an eigendecomposition.  From then on, one power iteration
    every ``refresh_every`` steps, ``Q_n ← QR(L_n Q_n)``, the columns first sorted by ``diag(Q_nᵀ L_n Q_n)``,
    and v̂ in the same order.  Directions that no gradient has shown yet, alike to L_n, are distinguished by a
    ramp on its diagonal, at most 1e-3 of the mean (1e-2 for the first bases).  An entry of a turned vector
    counts as zero where √v̂ is below 16 ε ‖√v̂‖: there it is rounding, which v̂ would blow up to full size.

    Treats any block.  A layer is one block, its bias a column.  Blocks of one axis turn only with
    ``vectors``.  State: ``2 d²`` scalars per axis if K is dense, beside v̂ (``2 d² + d`` if moments are
    whitened).  A block of D entries costs
    ``1.2·D·Σ d_n`` flops to observe and ``2·D·Σ d_n`` to turn a gradient (both less while it is held as
    factors of few rows).  It costs ``2·D·Σ d_n`` each to turn an update and to turn it back, and
    ``10/3 d³`` per axis to refresh.  Whitened moments cost ``2·D·Σ d_n`` more to observe, and ``2 d³`` per
    axis to refresh.
    """

    part: ClassVar[str] = "soap"

    beta: Fraction = 0.95  #: β₂, decay of v̂
    eps: NotNegative = 1e-8  #: added to the root, in units of the gradient
    moments: Literal["plain", "whitened"] = "plain"

    def fallible(self, state: SoapState, step: int) -> bool:
        return state.count == 0 or is_due(step, self.refresh_every) or self.eps < LEAST_EPS

    def init(self, like: BlockVector, ctx: Context) -> SoapState:
        valued = self.moments == "whitened"
        return SoapState(second=like.zeros_like(), **self._moments(like, ctx, valued=valued))

    def observe(self, state: SoapState, seen: Evaluation, ctx: Context) -> None:
        waits = self._waits(state)
        if not waits:
            for name, n, order in self._turn_bases(state, ctx, begun=state.count > 0):
                second = state.second[name]
                second = second.view(axes(second.shape))
                second.copy_(second.index_select(n, order))
            state.count += 1
        share = newest_weight(self.beta, state.count) if state.count else 0.0
        damping = self._damping(state, ctx)
        weight = self._weight(state) if waits or is_due(ctx.step, self.observe_every) else 0.0
        g = seen.gradient.to(ctx.backend.dtypes.factors)
        for name, bases in state.bases.items():
            block = g.factored(name)
            held = turned_as_held(block, bases) if share or self.moments == "whitened" else block
            if share:
                T = held.dense() if isinstance(held, Outer) else held
                ctx.storage.updated_(
                    state.second[name],
                    lambda s, t=T: s.mul_(1 - share).addcmul_(t, t, value=share),  # type: ignore[misc]
                    seen.gradient.dtype,
                )
            if not weight or not bases:
                continue
            grams = state.grams[name]
            if self.moments == "plain":
                average_(grams, seen.gradient.factored(name), weight, ctx, self.part)
            else:
                values = state.values[name]
                average_whitened_(grams, bases, values, block, held, weight, damping, ctx, self.part)

    def ready(self, state: SoapState) -> bool:
        return state.count > 0

    def apply(self, state: SoapState, v: BlockVector, ctx: Context) -> Solve:
        v, wanted = v.to(ctx.backend.dtypes.factors), v.dtype
        x = v.empty_like()
        for name, bases in state.bases.items():
            size = state.second[name].to(v.dtype).sqrt()
            scaled = turned(v.factored(name), bases)
            if any(Q is not None for Q in bases):
                least = (UNSEEN * torch.finfo(size.dtype).eps) * torch.linalg.vector_norm(size)
                scaled.masked_fill_(size <= least, 0.0)
            turned_back(scaled / size.add_(self.eps), bases, x[name])
        return Solve(x.to(wanted))
