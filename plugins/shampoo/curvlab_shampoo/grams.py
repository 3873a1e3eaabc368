"""Second moments of a block's gradient along each of its axes."""

from __future__ import annotations

from torch import Tensor

from curvlab.linalg.gram import weighted_gram_
from curvlab.linalg.outer import Outer
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.storage import work_of
from curvlab.protocols.structure import Family, Structure, as_gram
from curvlab.structures.dense import DenseMatrix
from curvlab.structures.diagonal import Diagonal
from curvlab.structures.work import work_of_axes


def axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths of a block's axes; a number has one, of length 1."""
    return tuple(shape) or (1,)


def families(
    K: Family, shape: tuple[int, ...], *, vectors: bool, one_sided: bool = False
) -> list[Family | None]:
    """K at the length of each axis; ``None`` for the axis of a block of one axis, without ``vectors``.

    With ``one_sided`` K is for the shortest axis alone (the first of several), and the others are diagonal.
    """
    lengths = axes(shape)
    if len(lengths) == 1 and not vectors:
        return [None]
    shortest = lengths.index(min(lengths))
    return [Diagonal() if one_sided and n != shortest else K.at(d) for n, d in enumerate(lengths)]


def fresh(found: list[Family | None], shape: tuple[int, ...], like: Tensor) -> list[Structure]:
    """A zero member for each axis of a block that has a family."""
    return [F.zeros(d, like=like) for F, d in zip(found, axes(shape), strict=True) if F is not None]


def work(found: list[Family | None], block: Block) -> float:
    """About how many flops a step spends on a block (``work_of_axes``)."""
    return work_of_axes(axes(block.shape), found)


def average_(grams: list[Structure], g: Tensor | Outer, weight: float, ctx: Context, part: str) -> None:
    """``L_n ← (1 − w) L_n + w Π[G_(n) G_(n)ᵀ]``, G_(n) the gradient with axis n for rows.

    ``1.2·D·Σ d_n`` flops for dense L_n.  With a gradient ``leftᵀ right`` of fewer rows than a dense L_n,
    ``G Gᵀ = leftᵀ (right rightᵀ) left`` is averaged instead, and likewise ``GᵀG``: see ``average_factored_``.
    """
    if isinstance(g, Outer) and all(is_factored(g, L) for L in grams):
        for L, X, others in zip(grams, (g.left, g.right), (g.right, g.left), strict=True):
            average_factored_(L, X, others, weight, ctx)
        return
    G = g.dense() if isinstance(g, Outer) else g
    G = G.reshape(axes(G.shape))
    for n, L in enumerate(grams):
        average_rows_(L, G.movedim(n, -1).reshape(-1, L.d), weight, ctx, part)


def average_rows_(L: Structure, rows: Tensor, weight: float, ctx: Context, part: str) -> None:
    """``L ← (1 − w) L + w Π[rowsᵀ rows]``."""
    rows, gram = rows.to(work_of(L)), as_gram(L.family, part)
    ctx.storage.change_(L, lambda L: gram.average_(L, 1 - weight, rows, weight, ctx.backend))


def is_factored(g: Outer, L: Structure) -> bool:
    """Whether a product of factors is averaged into L as it is: into a dense L, of few rows."""
    return isinstance(L, DenseMatrix) and 2 * len(g.left) <= min(g.left.shape[1], g.right.shape[1])


def average_factored_(L: Structure, X: Tensor, others: Tensor, weight: float, ctx: Context) -> None:
    """``L ← (1 − w) L + w Xᵀ (others othersᵀ) X`` for a dense L; ``2 r² (d + d') + 1.2 r d²`` flops."""
    X, N = X.to(work_of(L)), (others @ others.mT).to(work_of(L))
    ctx.storage.change_(L, lambda L: weighted_gram_(L.dense(), 1 - weight, X, N, weight))
