"""The implicit Gauss–Newton matrix as a curvature estimate."""

from __future__ import annotations

from dataclasses import dataclass, field

from curvlab.errors import UnsupportedEvidence
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Needs


@dataclass
class GaussNewtonState:
    """The operator of this step's curvature sample; gone with the step."""

    operator: LinearOperator[BlockVector] | None = field(default=None, metadata={"transient": "step"})


@dataclass(frozen=True)
class GaussNewton(CurvatureEstimator[GaussNewtonState]):
    """C is the GGN of the curvature sample itself, known through products only."""

    def needs(self) -> Needs:
        return Needs(implicit=True)

    def init(self, like: BlockVector, ctx: Context) -> GaussNewtonState:
        return GaussNewtonState()

    def observe(self, state: GaussNewtonState, seen: Evaluation, ctx: Context) -> None:
        state.operator = seen.ggn

    def curvature(self, state: GaussNewtonState) -> LinearOperator[BlockVector]:
        if state.operator is None:
            raise UnsupportedEvidence(
                "gauss-newton",
                "",
                expected="a product in the step that observed the batch",
                got="a part that uses the matrix before or after that step",
                hint='use it in "iterative"; "inverted" and "eigenbasis" need an estimator of factors',
            )
        return state.operator
