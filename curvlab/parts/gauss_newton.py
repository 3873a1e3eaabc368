"""The implicit Gauss–Newton matrix as a curvature estimate."""

from __future__ import annotations

from dataclasses import dataclass, field

from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Pass
from curvlab.protocols.needs import Needs


@dataclass
class GaussNewtonState:
    """The operator of this step's curvature sample; gone with the step."""

    operator: LinearOperator[BlockVector] | None = field(default=None, metadata={"transient": True})


@dataclass(frozen=True)
class GaussNewton(CurvatureEstimator[GaussNewtonState]):
    """C is the GGN of the curvature sample itself, known through products only."""

    def needs(self) -> Needs:
        return Needs(implicit=True)

    def init(self, like: BlockVector, ctx: Context) -> GaussNewtonState:
        return GaussNewtonState()

    def observe(self, state: GaussNewtonState, seen: Pass, ctx: Context) -> None:
        state.operator = seen.ggn

    def curvature(self, state: GaussNewtonState) -> LinearOperator[BlockVector]:
        assert state.operator is not None, "an implicit estimate is observed on every step"
        return state.operator
