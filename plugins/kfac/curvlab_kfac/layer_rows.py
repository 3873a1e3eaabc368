"""KFAC's curvature on the present batch, never formed: the estimator of CG-FAC."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import GramDiagonal, GramKronecker
from curvlab.linalg.lookups import Lookups
from curvlab.linalg.operator import BlockOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Count, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation
from curvlab.protocols.needs import Labels, Needs
from curvlab.protocols.rows import Sharing, rows_of


@dataclass
class RowsState:
    """Operators of this step's batch, gone with the step, and the blocks they are for."""

    operators: dict[str, BlockOperator] = field(default_factory=dict, metadata={"transient": "step"})
    shapes: dict[str, torch.Size] = field(default_factory=dict, metadata={"transient": True})


@dataclass(frozen=True)
class LayerRows(CurvatureEstimator[RowsState]):
    """``V ↦ GᵀG V AᵀA`` from scaled rows A and G (CG-FAC, arXiv 2101.00218; specs A8).

    The same matrix as ``layer-covariance`` with dense factors and no memory of earlier batches.
    Holds the rows only, ``r i + q o`` scalars a layer during a step.
    """

    separable = True

    labels: Labels = Labels.MODEL
    sharing: Sharing = "auto"
    samples: Count = 1
    tied: bool = False  #: also treat a matrix that is used transposed elsewhere: a head tied to its embedding

    def __post_init__(self) -> None:
        check_bounds(self)

    @property
    def by_layer(self) -> bool:
        return True

    def needs(self) -> Needs:
        return Needs.statistics(self.labels, self.samples)

    def refuses(self, block: Block) -> str | None:
        return block.refusal(tied=self.tied)

    def init(self, like: BlockVector, ctx: Context) -> RowsState:
        return RowsState(shapes=dict(like.layout.shapes))

    def observe(self, state: RowsState, seen: Evaluation, ctx: Context) -> None:
        state.operators = {}
        layers, dtype = seen.layers[self.labels], ctx.backend.dtypes.factors
        for name, shape in state.shapes.items():
            if name not in layers:  # not called in this pass: no curvature, and its gradient is zero
                empty = ctx.like(seen.gradient, "factors").new_zeros
                state.operators[name] = GramKronecker(empty(1, shape[0]), empty(1, shape[1]))
                continue
            rows = rows_of("layer-rows", name, layers[name], seen, self.sharing, dtype)
            g = None if rows.g is None else rows.g * rows.g_weight**0.5
            if isinstance(rows.a, Lookups):
                state.operators[name] = GramDiagonal(g, rows.a.counts() * rows.a_weight)
            else:
                state.operators[name] = GramKronecker(g, rows.a * rows.a_weight**0.5)

    def curvature(self, state: RowsState) -> BlockDiagonal:
        return BlockDiagonal(state.operators)
