"""Preconditioner: Adam's second moment, in the eigenbasis of the gradient's moments along each axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import naming_block
from curvlab.linalg.averages import newest_weight
from curvlab.linalg.kronecker import rotate
from curvlab.linalg.modes import on_axis
from curvlab.linalg.vectors import BlockVector, Outer
from curvlab.protocols.backend import Backend
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Fraction, NotNegative, check_bounds
from curvlab.protocols.cadence import Interval, is_due
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.structure import Family, Structure, as_gram
from curvlab_shampoo.grams import average_, axes, fresh, work

PART = "soap"

#: of a moment's mean eigenvalue: the largest that is added to its diagonal, along a ramp, before its
#: eigenvectors are looked for.  Among directions that no gradient has shown yet, rounding would choose
TILT = 1e-3
#: the same for the first eigenvectors: of one gradient only the leading directions are known, and rounding of
#: relative size ε d / TILT would be in the others
FIRST_TILT = 1e-2

#: of the rounding unit times ‖√v̂‖: where √v̂ is smaller, turned gradients are rounding, and count as zero
UNSEEN = 16.0

#: an eps below this may turn a gradient without a second moment into infinity
LEAST_EPS = 1e-16

#: of a block, one per axis; ``None`` is the identity
Bases = list[Tensor | None]


@dataclass
class SoapState:
    """Moments along each axis and their eigenbases, by block, and the gradient's mean square in those."""

    grams: dict[str, list[Structure]]
    bases: dict[str, Bases]
    second: BlockVector
    observed: int = 0  #: gradients that the moments along the axes have seen
    count: int = 0  #: gradients that ``second`` has seen


@dataclass(frozen=True)
class Soap(Preconditioner[SoapState]):
    """``x = Q [ (Qᵀ g) / (√v̂ + eps) ]``, v̂ the mean of ``(Qᵀ g)²``; the damping λ is not used.

    SOAP (Vyas et al. 2024, arXiv 2409.11321): Adam in Shampoo's eigenbasis.  Q has a factor ``Q_n`` on
    every axis n, eigenvectors of the moving average L_n of ``G_(n) G_(n)ᵀ``, G_(n) being the gradient with
    axis n for rows.  All averages are normalised by the sum of their weights, as Adam's bias correction
    does.  With K diagonal, Q is the identity and this is Adam.

    A gradient is turned by bases that come from the gradients before it: in its own eigenbasis it would be
    diagonal, and the rounding beside the diagonal be divided by its own size.  So the first gradient only
    starts the moments L_n: no parameter moves, and neither v̂ nor the momentum sees it (``ready``), as in
    the authors' code.  Where no axis turns there is nothing to wait for, and the first step is Adam's.  The
    first bases, for the second gradient, come from an eigendecomposition.  From then on, one power iteration
    every ``refresh_every`` steps, ``Q_n ← QR(L_n Q_n)``, the columns first sorted by ``diag(Q_nᵀ L_n Q_n)``,
    and v̂ in the same order.  Directions that no gradient has shown yet, alike to L_n, are told apart by a
    ramp on its diagonal, at most 1e-3 of the mean (1e-2 for the first bases).  An entry of a turned vector
    counts as zero where √v̂ is below 16 ε ‖√v̂‖: there it is rounding, which v̂ would blow up to full size.

    Treats any block.  A layer is one block, its bias a column.  Blocks of one axis turn only with
    ``vectors``.  State: ``2 d²`` scalars per axis if K is dense, beside v̂.  Costs, with a block of D entries,
    ``2·D·Σ d_n`` flops each to observe, to turn a gradient (less while it is held as factors), to turn an
    update, and to turn it back; ``10/3 d³`` per axis to refresh.
    """

    separable = True

    K: Family
    beta: Fraction = 0.95  #: β₂, decay of v̂
    decay: Fraction = 0.95  #: of the moments along the axes
    eps: NotNegative = 1e-8  #: added to the root, in units of the gradient
    vectors: bool = False
    observe_every: Interval = 1
    refresh_every: Interval = 10
    #: whether an axis of any block turns, blocks of other processes included; ``settled`` finds out
    turns: bool | None = field(default=None, compare=False, repr=False, metadata={"setting": False})

    def __post_init__(self) -> None:
        as_gram(self.K, PART)
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(factored=True)

    def joins(self, layer: str) -> bool:
        return True

    def work(self, block: Block) -> float:
        return work(self.K, block, vectors=self.vectors)

    def fallible(self, state: SoapState, step: int) -> bool:
        return state.count == 0 or is_due(step, self.refresh_every) or self.eps < LEAST_EPS

    def settled(self, blocks: Sequence[Block]) -> Soap:
        return replace(self, turns=any(self._turns(b) for b in blocks))

    def _turns(self, block: Block) -> bool:
        lengths = axes(block.shape)
        treated = len(lengths) > 1 or self.vectors
        return treated and any(as_gram(self.K.at(d), PART).rotates for d in lengths)

    def init(self, like: BlockVector, ctx: Context) -> SoapState:
        shapes, empty = like.layout.shapes, ctx.like(like, "factors")
        grams = {name: fresh(self.K, s, empty, vectors=self.vectors) for name, s in shapes.items()}
        bases: dict[str, Bases] = {name: [_identity(L) for L in found] for name, found in grams.items()}
        return SoapState(grams, bases, like.zeros_like())

    def observe(self, state: SoapState, seen: Evaluation, ctx: Context) -> None:
        turning = any(Q is not None for bases in state.bases.values() for Q in bases)
        if state.observed == 0 and (turning if self.turns is None else self.turns):
            self._average(state, seen, ctx)
            return
        if state.count == 0:
            self._begin(state, ctx)
        elif is_due(ctx.step, self.refresh_every):
            self._turn(state, ctx)
        state.count += 1
        share = newest_weight(self.beta, state.count)
        g = seen.gradient.to(ctx.backend.dtypes.factors)
        for name, bases in state.bases.items():
            turned = _turned(g.factored(name), bases)
            ctx.storage.updated_(
                state.second[name],
                lambda s, t=turned: s.mul_(1 - share).addcmul_(t, t, value=share),  # type: ignore[misc]
                seen.gradient.dtype,
            )
        if is_due(ctx.step, self.observe_every):
            self._average(state, seen, ctx)

    def ready(self, state: SoapState) -> bool:
        return state.count > 0

    def _average(self, state: SoapState, seen: Evaluation, ctx: Context) -> None:
        """The gradient's moments along each axis."""
        state.observed += 1
        weight = newest_weight(self.decay, state.observed)
        for name, grams in state.grams.items():
            if grams:
                average_(grams, seen.gradient[name], weight, ctx, PART)

    def apply(self, state: SoapState, v: BlockVector, ctx: Context) -> Solve:
        v, wanted = v.to(ctx.backend.dtypes.factors), v.dtype
        x = v.empty_like()
        for name, bases in state.bases.items():
            size = state.second[name].to(v.dtype).sqrt()
            scaled = _turned(v.factored(name), bases)
            if any(Q is not None for Q in bases):
                least = (UNSEEN * torch.finfo(size.dtype).eps) * torch.linalg.vector_norm(size)
                scaled.masked_fill_(size <= least, 0.0)
            _turned_back(scaled / size.add_(self.eps), bases, x[name])
        return Solve(x.to(wanted))

    def _begin(self, state: SoapState, ctx: Context) -> None:
        """The eigenvectors of what one gradient has shown."""
        for name, bases in state.bases.items():
            for n, L in enumerate(state.grams[name]):
                if bases[n] is not None:
                    with naming_block(name):
                        bases[n] = _eigenvectors(L, ctx.backend)

    def _turn(self, state: SoapState, ctx: Context) -> None:
        """One power iteration, and v̂ in the order of the columns."""
        for name, bases in state.bases.items():
            second = state.second[name]
            second = second.view(axes(second.shape))
            for n, (L, Q) in enumerate(zip(state.grams[name], bases, strict=True)):
                if Q is None:
                    continue
                P = (L @ Q).addcmul_(Q, _ramp(L).unsqueeze(-1))
                order = torch.argsort((Q * P).sum(0), descending=True, stable=True)
                bases[n] = ctx.backend.qr(P[:, order])
                second.copy_(second.index_select(n, order))


def _identity(L: Structure) -> Tensor | None:
    if not as_gram(L.family, PART).rotates:
        return None
    return torch.eye(L.d, dtype=L.like.dtype, device=L.like.device)


def _eigenvectors(L: Structure, backend: Backend) -> Float[Tensor, "d d"]:
    """Of L and its ramp, the largest first; from the moments of one gradient."""
    gram = as_gram(L.family, PART)
    tilted = replace(L, **{name: t.clone() for name, t in L.tensors().items()})  # type: ignore[type-var]
    gram.average_(tilted, 1.0, _ramp(L, FIRST_TILT).sqrt().diag(), 1.0, backend)
    _, Q = gram.eigh(tilted, backend)
    assert Q is not None
    return Q.flip(-1)


def _ramp(L: Structure, tilt: float = TILT) -> Float[Tensor, " d"]:
    """What is added to the diagonal: from ``tilt`` of its mean down to nearly nothing."""
    mean = L.mean_diagonal()
    return torch.arange(L.d, 0, -1, dtype=mean.dtype, device=mean.device) * (mean * (tilt / L.d))


def _turned(g: Tensor | Outer, bases: Bases) -> Tensor:
    """``Qᵀ g``: the block in the bases; itself if there are none."""
    if len(bases) == 2:
        return rotate(g, *bases)
    T = g.dense() if isinstance(g, Outer) else g
    return _along(T, bases)


def _turned_back(T: Tensor, bases: Bases, out: Tensor) -> None:
    """``out ← Q T``."""
    if len(bases) == 2:
        Q_B, Q_A = bases
        T = T if Q_B is None else Q_B @ T
        if Q_A is not None:
            torch.mm(T, Q_A.mT, out=out)
            return
    elif bases:
        T = _along(T, [None if Q is None else Q.mT for Q in bases])
    out.copy_(T)


def _along(T: Tensor, matrices: Bases) -> Tensor:
    """Every axis's rows times its matrix."""
    shape = T.shape
    T = T.reshape(axes(shape))
    for n, M in enumerate(matrices):
        if M is not None:
            T = on_axis(T, n, lambda rows, M=M: rows @ M)  # type: ignore[misc]
    return T.reshape(shape)
