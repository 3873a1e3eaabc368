"""Second moments of a block's gradient along each of its axes."""

from __future__ import annotations

from torch import Tensor

from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.storage import work_of
from curvlab.protocols.structure import Family, Structure, as_gram
from curvlab.structures.work import work_of_axes


def axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The lengths of a block's axes; a number has one, of length 1."""
    return tuple(shape) or (1,)


def fresh(K: Family, shape: tuple[int, ...], like: Tensor, *, vectors: bool) -> list[Structure]:
    """One zero member of K for each axis of a block; none for a block of one axis, without ``vectors``."""
    lengths = axes(shape)
    if len(lengths) == 1 and not vectors:
        return []
    return [K.at(d).zeros(d, like=like) for d in lengths]


def work(K: Family, block: Block, *, vectors: bool) -> float:
    """About how many flops a step spends on a block (``work_of_axes``)."""
    lengths = axes(block.shape)
    treated = len(lengths) > 1 or vectors
    return work_of_axes(lengths, [K if treated else None] * len(lengths))


def average_(grams: list[Structure], G: Tensor, weight: float, ctx: Context, part: str) -> None:
    """``L_n ← (1 − w) L_n + w Π[G_(n) G_(n)ᵀ]``, G_(n) the gradient with axis n for rows; 2·D·Σ d_n flops."""
    G = G.reshape(axes(G.shape))
    for n, L in enumerate(grams):
        rows = G.movedim(n, -1).reshape(-1, L.d).to(work_of(L))
        gram = as_gram(L.family, part)
        ctx.storage.change_(L, lambda L: gram.average_(L, 1 - weight, rows, weight, ctx.backend))  # noqa: B023
