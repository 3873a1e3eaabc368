"""Estimators of known curvature, and evidence for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Kronecker
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.blocks import Block
from curvlab.protocols.context import Context
from curvlab.protocols.estimator import CurvatureEstimator
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.needs import Labels, Needs
from curvlab.structures.dense import Dense
from tests.parts.vectors import DTYPE, Matrix, passed, spd

LAYERS = BlockLayout({"0": (3, 4), "2": (2, 3)})


@dataclass(frozen=True)
class Held(CurvatureEstimator[Matrix]):
    """A matrix that is C, whatever is seen; counts its observations in ``seen``."""

    seed: int = 0

    def needs(self) -> Needs:
        return Needs(implicit=True)

    def init(self, like: BlockVector, ctx: Context) -> Matrix:
        return Matrix(spd(self.seed, like.layout.size))

    def observe(self, state: Matrix, seen: Evaluation, ctx: Context) -> None:
        return None

    def curvature(self, state: Matrix) -> LinearOperator[BlockVector]:
        return state


@dataclass
class FactorState:
    """Dense factors per block and how often they were observed."""

    A: dict[str, Tensor]
    B: dict[str, Tensor]
    observed: int = 0


@dataclass(frozen=True)
class LastFactors(CurvatureEstimator[FactorState]):
    """B ⊗ A of the last pass seen, from its data labels; no memory of earlier ones."""

    labels: Labels = Labels.DATA

    def needs(self) -> Needs:
        return Needs(frozenset({self.labels}))

    @property
    def by_layer(self) -> bool:
        return True

    def refuses(self, block: Block) -> str | None:
        return None if block.is_layer else block.reason

    def init(self, like: BlockVector, ctx: Context) -> FactorState:
        shapes = like.layout.shapes.items()
        return FactorState(
            {n: torch.eye(s[1], dtype=like.dtype) for n, s in shapes},
            {n: torch.eye(s[0], dtype=like.dtype) for n, s in shapes},
        )

    def observe(self, state: FactorState, seen: Evaluation, ctx: Context) -> None:
        state.observed += 1
        for name, (stats,) in seen.layers[self.labels].items():
            a, g = stats.inputs.flatten(0, 1), stats.grads.flatten(0, 2)
            state.A[name] = a.mT @ a / seen.examples
            state.B[name] = g.mT @ g / seen.examples

    def curvature(self, state: FactorState) -> BlockDiagonal:
        family = Dense()
        return BlockDiagonal(
            {n: Kronecker(family.project(state.B[n]), family.project(A)) for n, A in state.A.items()}
        )


def evidence(
    seed: int,
    *,
    n: int = 6,
    s: int = 1,
    v: int = 1,
    layout: BlockLayout = LAYERS,
    labels: Labels = Labels.DATA,
) -> Evaluation:
    """A pass with random statistics of each layer; its gradient is theirs."""
    g = torch.Generator().manual_seed(seed)
    stats = {
        name: (
            LayerStats(
                torch.randn(n, s, i, generator=g, dtype=DTYPE),
                torch.randn(v, n, s, o, generator=g, dtype=DTYPE),
            ),
        )
        for name, (o, i) in layout.shapes.items()
    }
    gradient = layout.zeros(like=torch.zeros((), dtype=DTYPE))
    for name, (each,) in stats.items():
        gradient[name].copy_(torch.einsum("vnso,nsi->oi", each.grads, each.inputs) / n)
    seen = passed(gradient, layers={labels: stats})
    return Evaluation(n, seen.loss, seen.gradient, seen.layers)
