"""About how many flops a step spends on a block with a factor on every axis, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from curvlab.protocols.blocks import Block
from curvlab.protocols.structure import Family
from curvlab.structures.diagonal import Diagonal


def work_of_pair(block: Block, B: Family | None, A: Family | None) -> float:
    """The work of a layer's block ``[o, i]`` with a factor for outputs and one for inputs; ``None`` is I."""
    if A is not None and block.one_hot and not A.at(block.shape[1]).averages_lookups:
        A = Diagonal()
    return work_of_axes(block.shape, (B, A))


def work_of_axes(shape: Sequence[int], families: Sequence[Family | None]) -> float:
    """The work of a block of D entries, axis n of s_n scalars: ``D + Σ_n (2 s_n D / d_n + 4 s_n^1.5)``.

    The first term is what is done by entry, the second a product with the factor, the third an inverse, a
    root or an update of it.  These are ``2 d D`` and ``4 d³`` for a dense factor, ``2 D`` and little more
    for a diagonal.
    """
    D = math.prod(shape)
    spent = float(D)
    for d, family in zip(shape, families, strict=True):
        if family is not None and d:
            s = family.at(d).scalars(d)
            spent += 2.0 * s * D / d + 4.0 * s**1.5
    return spent
