"""Estimator: low-rank factors, overwritten and corrected by dense averages of the same evidence."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import torch

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Bounds, Count, Natural, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs
from curvlab.protocols.storage import to_dtype, work_of
from curvlab.protocols.structure import Structure, kronecker_blocks
from curvlab.structures.dense import DenseMatrix
from curvlab_lowrank.correction import LowRankMember, correct_, overwrite_
from curvlab_lowrank.eigenvalues import Search

PART = "corrected-covariance"


@dataclass
class CorrectedState:
    """One state each."""

    held: Any
    average: Any


@dataclass(frozen=True)
class CorrectedCovariance(CurvatureEstimator[CorrectedState]):
    """The estimate of ``held``, whose low-rank factors are overwritten and corrected by those of ``average``.

    Both see the same evidence: ``held`` keeps factors ``c I + U Diag(e) Uᵀ`` (structure ``low-rank``) and
    ``average`` the same factors, dense.  Every ``overwrite_every``-th observation of a layer, the first among
    them, eigenvalues and vectors come afresh from the dense factor, by a randomized range with
    ``oversampling`` more directions and ``rounds`` rounds of subspace iteration.  The others are those of
    ``held``, by rows (Brand).  With ``correct`` above 0 they also correct that share of the columns, and one
    more, drawn at random: these become eigenvectors of the dense factor between themselves.  B-R-KFAC and
    B-R-C-KFAC: Puiu 2022, arXiv 2210.08494.

    A factor whose rank is its dimension is exact, and left alone; so is a pair that is not low-rank and
    dense, such as the diagonal factors of a lookup table.  ``overwrite_every = 1`` is RS-KFAC.

    Beside what both estimators cost, an overwrite costs ``2 (rounds + 2) d² q + 4 (rounds + 2) d q²`` flops a
    factor, q = rank + oversampling, and a correction of m columns ``2 d² m + 4 d m²``.
    """

    held: CurvatureEstimator[Any]
    average: CurvatureEstimator[Any]
    overwrite_every: Count = 10
    oversampling: Natural = 10
    rounds: Natural = 1
    correct: Annotated[float, Bounds(least=0, most=1)] = 0.0

    def __post_init__(self) -> None:
        check_bounds(self)
        if self.held.needs() != self.average.needs():
            what = f"{PART} has two estimators that read different evidence"
            raise ConfigError(Fault(what, hint="give held and average the same labels, samples and examples"))

    @property
    def by_layer(self) -> bool:
        return self.held.by_layer

    def needs(self) -> Needs:
        return self.held.needs()

    def refuses(self, block: Block) -> str | None:
        return self.held.refuses(block) or self.average.refuses(block)

    def work(self, block: Block) -> float:
        return self.held.work(block) + self.average.work(block)

    def init(self, like: BlockVector, ctx: Context) -> CorrectedState:
        state = CorrectedState(self.held.init(like, ctx), self.average.init(like, ctx))
        if self.held.observed(state.held).keys() != set(like.layout.names):
            what = f"{PART} needs an estimator that counts the observations of each block"
            raise ConfigError(Fault(what, path="held", hint='use "layer-covariance"'))
        if not any(isinstance(L, LowRankMember) for L, _ in self._pairs(state).values()):
            what = f"{PART} has a low-rank factor, and {type(self.held).__name__} holds none to overwrite"
            raise ConfigError(Fault(what, path="held", hint='use "low-rank" for its A or B'))
        return state

    def observe(self, state: CorrectedState, seen: Evaluation, ctx: Context) -> None:
        before = dict(self.held.observed(state.held))
        self.held.observe(state.held, seen, ctx)
        self.average.observe(state.average, seen, ctx)
        now = self.held.observed(state.held)
        for (name, _), (L, M) in self._pairs(state).items():
            if now[name] > before[name] and isinstance(M, DenseMatrix) and isinstance(L, LowRankMember):
                assert isinstance(L, Structure)
                if L.vectors.shape[-1] < L.d:
                    self._improve_(L, M, (now[name] - 1) % self.overwrite_every == 0, ctx)

    def observed(self, state: CorrectedState) -> dict[str, int]:
        return dict(self.held.observed(state.held))

    def curvature(self, state: CorrectedState) -> LinearOperator[BlockVector]:
        return self.held.curvature(state.held)

    def _pairs(self, state: CorrectedState) -> dict[tuple[str, str], tuple[Structure, Structure]]:
        """The factors of both estimators, by block and side."""
        held = kronecker_blocks(self.held.curvature(state.held), PART)
        average = kronecker_blocks(self.average.curvature(state.average), PART)
        found = {}
        for name, block in held.items():
            other = average[name]
            for side, (L, M) in {"A": (block.A, other.A), "B": (block.B, other.B)}.items():
                if isinstance(L, Structure) and isinstance(M, Structure):
                    found[name, side] = (L, M)
        return found

    def _improve_(self, L: Any, M: DenseMatrix, fresh: bool, ctx: Context) -> None:
        """L is overwritten by M if it is to be found afresh, else corrected."""
        dense, rank = to_dtype(M, work_of(M)).matrix, int(L.vectors.shape[-1])
        if fresh:
            search = Search(rank, self.oversampling, self.rounds, 0.0)
            ctx.storage.change_(L, lambda L: overwrite_(L, dense, search, ctx.backend, ctx.generator))
        elif self.correct:
            some = min(round(self.correct * rank + 1), rank)
            columns = torch.randperm(rank, generator=ctx.generator, device=dense.device)[:some]
            ctx.storage.change_(L, lambda L: correct_(L, dense, columns, ctx.backend))
