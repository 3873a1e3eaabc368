"""Estimator: KFAC's factors by Brand updates, overwritten and corrected by dense averages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.lookups import AnyRows
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Bounds, Count, Natural
from curvlab.protocols.context import Context
from curvlab.protocols.rows import Rows
from curvlab.protocols.storage import to_dtype, work_of
from curvlab.protocols.structure import Family, Structure
from curvlab.structures.dense import Dense, DenseMatrix
from curvlab_kfac.layer_covariance import CovarianceState, LayerCovariance, average_
from curvlab_lowrank.correction import correct_, overwrite_
from curvlab_lowrank.eigenvalues import Search
from curvlab_structures.low_rank import LowRank, LowRankMatrix

PART = "corrected-covariance"


@dataclass
class CorrectedState(CovarianceState):
    """Low-rank factors, and the dense averages of those that are narrower than their dimension."""

    dense_A: dict[str, DenseMatrix] = field(default_factory=dict)
    dense_B: dict[str, DenseMatrix] = field(default_factory=dict)


@dataclass(frozen=True)
class CorrectedCovariance(LayerCovariance):
    """``C ≈ B ⊗ A`` as ``layer-covariance`` with ``low-rank`` factors, each beside its dense average.

    Every ``overwrite_every``-th observation of a layer, the first among them, eigenvalues and vectors come
    afresh from the dense average, by a randomized range with ``oversampling`` more directions and ``rounds``
    rounds of subspace iteration.  The others update them by their rows (Brand).  With ``correct`` above 0
    those also correct that share of the columns, and one more, drawn at random: they become eigenvectors
    of the dense average between themselves.  B-R-KFAC and B-R-C-KFAC: Puiu 2022, arXiv 2210.08494.

    A factor whose rank is its dimension is exact and has no dense average; neither has one of another
    structure.  ``overwrite_every = 1`` is RS-KFAC.

    State: ``d² + d r`` scalars a factor.  An observation costs ``2 n d²`` flops on n rows for the average,
    what ``low-rank`` or ``randomized`` cost for the eigenvalues, and ``2 d² m`` for m corrected columns.
    """

    separable = False  # which columns and ranges are drawn depends on the blocks before

    A: Family = LowRank(220)
    B: Family = LowRank(220)
    overwrite_every: Count = 10
    oversampling: Natural = 10
    rounds: Natural = 1
    correct: Annotated[float, Bounds(least=0, most=1)] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        options = (*self.A.options(), *self.B.options())
        if not any(isinstance(option, LowRank) for option in options):
            what = f"{PART} has a low-rank A or B, and neither is: there is nothing to overwrite"
            raise ConfigError(Fault(what, hint='use "low-rank" for them, or "layer-covariance"'))

    def work(self, block: Block) -> float:
        return super().work(block) + sum(2.0 * d * d for d in block.shape)

    def init(self, like: BlockVector, ctx: Context) -> CorrectedState:
        low = super().init(like, ctx)
        return CorrectedState(low.A, low.B, low.observed, _averages(low.A), _averages(low.B))

    def average_rows_(
        self, state: CovarianceState, name: str, rows: Rows, weight: float, ctx: Context
    ) -> None:
        assert isinstance(state, CorrectedState)
        fresh = (state.observed[name] - 1) % self.overwrite_every == 0
        self._factor_(state.A[name], state.dense_A.get(name), rows.a, weight, rows.a_weight, fresh, ctx)
        if rows.g is not None:
            self._factor_(state.B[name], state.dense_B.get(name), rows.g, weight, rows.g_weight, fresh, ctx)

    def _factor_(
        self,
        L: Structure,
        M: DenseMatrix | None,
        X: AnyRows,
        weight: float,
        of_a_row: float,
        fresh: bool,
        ctx: Context,
    ) -> None:
        """One factor L and its dense average M; rows X weigh ``of_a_row`` each."""
        if M is None:
            average_(L, 1 - weight, X, weight * of_a_row, ctx)
            return
        assert isinstance(L, LowRankMatrix)
        average_(M, 1 - weight, X, weight * of_a_row, ctx)
        dense, rank = to_dtype(M, work_of(M)).matrix, _rank(L)
        if fresh:
            search = Search(rank, self.oversampling, self.rounds, 0.0)
            ctx.storage.change_(L, lambda L: overwrite_(L, dense, search, ctx.backend, ctx.generator))
            return
        average_(L, 1 - weight, X, weight * of_a_row, ctx)
        if self.correct:
            some = min(round(self.correct * rank + 1), rank)
            columns = torch.randperm(rank, generator=ctx.generator, device=dense.device)[:some]
            ctx.storage.change_(L, lambda L: correct_(L, dense, columns, ctx.backend))


def _averages(factors: dict[str, Structure]) -> dict[str, DenseMatrix]:
    """The identity for each low-rank factor that is narrower than its dimension."""
    narrow = {name: L for name, L in factors.items() if isinstance(L, LowRankMatrix) and _rank(L) < L.d}
    return {name: Dense().eye(L.d, like=L.like) for name, L in narrow.items()}


def _rank(L: Structure) -> int:
    assert isinstance(L, LowRankMatrix)
    return int(L.vectors.shape[-1])
