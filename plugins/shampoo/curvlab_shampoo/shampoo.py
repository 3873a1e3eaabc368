"""Preconditioner: a root of the gradient's second moments along each axis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from curvlab.errors import naming_block
from curvlab.linalg.averages import newest_weight
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Factor, Kronecker
from curvlab.linalg.modes import ModeProducts
from curvlab.linalg.operator import BlockOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Bounds, Fraction, check_bounds
from curvlab.protocols.cadence import Interval, is_due
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Evaluation, Solve
from curvlab.protocols.needs import Needs
from curvlab.protocols.preconditioner import Preconditioner
from curvlab.protocols.structure import Family, Structure, as_gram
from curvlab_shampoo.grams import average_, axes, families, fresh, work

PART = "shampoo"


@dataclass
class ShampooState:
    """Moments and their roots by block, one per axis; none for a block that is left as it is.

    The moments change on observing steps, the roots on refreshing ones.
    """

    grams: dict[str, list[Structure]]
    roots: dict[str, list[Factor]]
    observed: int = 0


@dataclass(frozen=True)
class Shampoo(Preconditioner[ShampooState]):
    """``x`` = g with ``(L_n + λ avg(L_n) I)^p`` on every axis n; needs the gradient alone, treats any block.

    λ is relative: it is added in units of the mean eigenvalue of each L_n (its mean diagonal), so that what
    it means does not depend on the scale of the loss.  ``L_n`` is the moving average, normalized by the sum
    of its weights, of ``G_(n) G_(n)ᵀ``, where G_(n) is the gradient with axis n for rows.  The power p is
    ``exponent``, or ``−1/(2N)`` for a block of N axes.  A matrix is then ``x = L^{-1/4} g R^{-1/4}``, and x
    does not change when all gradients are scaled.  Gupta, Koren and Singer 2018 (arXiv 1802.09568),
    algorithm 1, with an average for their sum (Anil et al. 2020, arXiv 2002.09018).

    A layer is one block, its bias a column.  Blocks of one axis have a factor only with ``vectors``, and
    are left as they are without.  An axis that has only seen zeros is left as it is, too.  Roots include the
    present gradient, and the first are of the first gradient, in whichever step that comes.

    State: ``2 d²`` scalars per axis if K is dense.  Costs, with a block of D entries, ``2·D·Σ d_n`` flops to
    observe and to apply, and an eigendecomposition per axis to refresh.
    """

    separable = True

    K: Family
    decay: Fraction = 0.95
    exponent: Annotated[float, Bounds(below=0)] | None = None
    vectors: bool = True
    observe_every: Interval = 1
    refresh_every: Interval = 10

    def __post_init__(self) -> None:
        as_gram(self.K, PART)
        check_bounds(self)

    def needs(self, step: int) -> Needs:
        return Needs(factored=True)

    def joins(self, layer: str) -> bool:
        return True

    def work(self, block: Block) -> float:
        return work(families(self.K, block.shape, vectors=self.vectors), block)

    def fallible(self, state: ShampooState, step: int) -> bool:
        return state.observed == 0 or is_due(step, self.refresh_every)

    def init(self, like: BlockVector, ctx: Context) -> ShampooState:
        shapes, empty = like.layout.shapes, ctx.like(like, "factors")
        grams = {
            name: fresh(families(self.K, s, vectors=self.vectors), s, empty) for name, s in shapes.items()
        }
        return ShampooState(grams, {name: [_one(L, ctx) for L in found] for name, found in grams.items()})

    def observe(self, state: ShampooState, seen: Evaluation, ctx: Context) -> None:
        if state.observed and not is_due(ctx.step, self.observe_every):
            return
        state.observed += 1
        weight = newest_weight(self.decay, state.observed)
        for name, grams in state.grams.items():
            if grams:
                average_(grams, seen.gradient.factored(name), weight, ctx, PART)

    def refresh(self, state: ShampooState, ctx: Context) -> None:
        if state.observed > 1 and not is_due(ctx.step, self.refresh_every):
            return
        for name, grams in state.grams.items():
            for n, L in enumerate(grams):
                p = -0.5 / len(grams) if self.exponent is None else self.exponent
                with naming_block(name):
                    state.roots[name][n] = _root(L, p, ctx)

    def apply(self, state: ShampooState, v: BlockVector, ctx: Context) -> Solve:
        blocks: dict[str, BlockOperator] = {}
        for name, roots in state.roots.items():
            if not roots:
                blocks[name] = Kronecker(None, None)
            elif len(roots) == 2:
                blocks[name] = Kronecker(*roots)
            else:
                blocks[name] = ModeProducts(axes(v.layout.shapes[name]), tuple(roots))
        return Solve(ctx.product(BlockDiagonal(blocks), v, "factors"))


def _one(L: Structure, ctx: Context) -> Factor:
    """The identity, as a record of the kind that ``_root`` gives."""
    return as_gram(L.family, PART).power(L.family.eye(L.d, like=L.like), 1.0, 0.0, ctx.backend)


def _root(L: Structure, p: float, ctx: Context) -> Factor:
    mean = float(L.mean_diagonal())
    if mean == 0.0:
        return _one(L, ctx)
    return as_gram(L.family, PART).power(L, p, ctx.damping * mean, ctx.backend)
