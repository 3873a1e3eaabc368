"""Operators made of operators: shifted, by block too, block-diagonal, restricted, counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from curvlab.linalg.operator import BlockOperator, LinearOperator
from curvlab.linalg.outer import Outer
from curvlab.linalg.vectors import BlockLayout, BlockVector


@dataclass(frozen=True)
class Shifted(LinearOperator[BlockVector]):
    """``C + λ I`` for a positive semi-definite C."""

    base: LinearOperator[BlockVector]
    shift: float

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return (self.base @ v).add_(v, self.shift)


@dataclass(frozen=True)
class Ridged(LinearOperator[BlockVector]):
    """``C + ρ_b I`` for each block b that ``ridge`` names."""

    base: LinearOperator[BlockVector]
    ridge: Mapping[str, float]

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        out = (self.base @ v).owned()
        for name in out.layout.names:
            if self.ridge.get(name):
                out[name].add_(v[name], alpha=self.ridge[name])
        return out


@dataclass(frozen=True)
class InDtype(LinearOperator[BlockVector]):
    """``base``, whose products are made in ``dtype``, for vectors of any."""

    base: LinearOperator[BlockVector]
    dtype: torch.dtype

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return (self.base @ v.to(self.dtype)).to(v.dtype)


@dataclass(frozen=True)
class BlockDiagonal(LinearOperator[BlockVector]):
    """One symmetric PSD operator per block, zero between blocks.

    Blocks that a vector holds factored are handed on factored; images that are matrices are written
    straight into the result's buffer, images that are factors stay factors.
    """

    blocks: Mapping[str, BlockOperator]

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        out = v.empty_like()
        for name, operator in self.blocks.items():
            image = operator.product(v.factored(name), out=out[name])
            if isinstance(image, Outer):
                out.outers[name] = image
        return out


@dataclass(frozen=True)
class Restricted(LinearOperator[BlockVector]):
    """A principal submatrix: ``base`` on ``part`` of its blocks, the others held at zero."""

    base: LinearOperator[BlockVector]
    whole: BlockLayout
    part: BlockLayout

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        return (self.base @ v.padded(self.whole)).restrict(self.part)


@dataclass
class Counted(LinearOperator[BlockVector]):
    """``base``, and how many products were made with it."""

    base: LinearOperator[BlockVector]
    count: int = 0

    self_adjoint = True
    psd = True

    def __matmul__(self, v: BlockVector) -> BlockVector:
        self.count += 1
        return self.base @ v
