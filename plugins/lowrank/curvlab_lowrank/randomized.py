"""RS-KFAC's inverse: each dense factor from its largest eigenvalues alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.errors import naming_block
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Factor, Kronecker
from curvlab.linalg.operator import BlockOperator, LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Count, Fraction, Natural, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.preconditioner import Inverse
from curvlab.protocols.structure import Structure, as_gram, kronecker_blocks
from curvlab.structures.dense import DenseMatrix
from curvlab_lowrank.eigenvalues import Search
from curvlab_lowrank.spectrum import LowRankInverse, Rest, continued_inverse

PART = "randomized"
#: a mean diagonal below this is an unused side, which exchanges no scale with the other
TRACE_FLOOR = 1e-12


@dataclass(frozen=True)
class Randomized(Inverse):
    """Adds ``√λ π`` to A and ``√λ / π`` to B, ``π² = (tr A / i) / (tr B / o)``, as ``split-cholesky`` does.

    A side of dimension 1 takes no damping and the other one λ over its value; where B is the identity, A
    takes λ, exactly.  ``relative``: λ is in units of each block's mean curvature, so that A takes
    ``√λ tr A / i`` and B ``√λ tr B / o``.

    The ``rank`` largest eigenvalues of each dense factor are found by a randomized range with
    ``oversampling`` more directions and ``rounds`` rounds of subspace iteration; ``rest`` says what the
    others count as.  With ``ratio`` above 0 the rank is the first of 32, 64, 128, …, ``rank`` at which the
    smallest one found is at most ``ratio`` times the largest.  Factors of dimension at most rank +
    oversampling are diagonalised exactly: the inverse is then that of ``split-cholesky``.  Structures other
    than ``dense`` are inverted by their own rule.  A block's directions are drawn anew in every step and
    do not depend on other blocks.

    Costs ``2 (rounds + 2) d² q + 4 (rounds + 2) d q²`` flops a factor, q = rank + oversampling, instead of
    d³.  RS-KFAC: Puiu 2022, arXiv 2206.15397; the continued spectrum: arXiv 2210.08494.
    """

    rank: Count = 220
    oversampling: Natural = 10
    rounds: Natural = 3
    rest: Rest = "least"
    ratio: Fraction = 0.0
    relative: bool = False

    separable = True

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, C: LinearOperator[BlockVector]) -> BlockDiagonal:
        blocks = kronecker_blocks(C, PART).items()
        return BlockDiagonal({name: Kronecker(self._eye(k.B), self._eye(k.A)) for name, k in blocks})

    def __call__(self, C: LinearOperator[BlockVector], ctx: Context) -> BlockDiagonal:
        found: dict[str, BlockOperator] = {}
        for name, block in kronecker_blocks(C, PART).items():
            with naming_block(name):
                on_B, on_A = shifts(block, ctx.damping, relative=self.relative)
                draws = ctx.randomness(name)
                found[name] = Kronecker(
                    self._inverse(block.B, on_B, ctx, draws), self._inverse(block.A, on_A, ctx, draws)
                )
        return BlockDiagonal(found)

    def _inverse(
        self, side: Factor | None, shift: Tensor | float, ctx: Context, draws: torch.Generator
    ) -> Factor | None:
        if not isinstance(side, Structure):
            return side
        if not isinstance(side, DenseMatrix):
            return as_gram(side.family, PART).inverse(side, shift, ctx.backend)
        search = Search(self.rank, self.oversampling, self.rounds, self.ratio)
        D, U = search.largest(side.matrix, ctx.backend, draws)
        return continued_inverse(D, U, side.matrix.diagonal().sum(), shift, self.rank, self.rest)

    def _eye(self, side: Factor | None) -> Factor | None:
        if not isinstance(side, Structure):
            return side
        if not isinstance(side, DenseMatrix):
            return side.family.eye(side.d, like=side.like)
        return LowRankInverse.identity(side.d, self.rank, side.like)


def shifts(block: Kronecker, damping: float, *, relative: bool) -> tuple[Tensor | float, Tensor | float]:
    """What is added to B and to A."""
    A, B, root = block.A, block.B, damping**0.5
    assert isinstance(A, Structure), "A is always estimated"
    a = A.mean_diagonal()
    if not isinstance(B, Structure):
        return 0.0, _share(a, damping) if relative else damping
    b = B.mean_diagonal()
    if relative:
        on_A = 0.0 if A.d == 1 < B.d else damping if B.d == 1 else root
        on_B = 0.0 if B.d == 1 else damping if A.d == 1 else root
        return _share(b, on_B), _share(a, on_A)
    if B.d == 1:
        return (TRACE_FLOOR - b).clamp(min=0.0), damping / b.clamp(min=TRACE_FLOOR)
    if A.d == 1:
        return damping / a.clamp(min=TRACE_FLOOR), (TRACE_FLOOR - a).clamp(min=0.0)
    both = torch.minimum(a, b) > TRACE_FLOOR
    pi = torch.where(both, (a / b.clamp(min=TRACE_FLOOR)).sqrt(), torch.ones_like(a))
    return root / pi, root * pi


def _share(mean: Tensor, share: float) -> Tensor:
    """A share of a mean eigenvalue; 1 where there is none, so that what saw nothing is the identity."""
    return torch.where(mean > 0, share * mean, torch.ones_like(mean))
