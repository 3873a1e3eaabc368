"""Experiments on what low precision breaks: each gives numbers, which tests and the study judge.

Parts are the real ones: layer covariances and inverses, the inverse-free update, moving averages, storage.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.errors import NotPositiveDefinite
from curvlab.linalg import factorizations
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Factor, Kronecker
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.parts.eigenbasis import Eigenbasis
from curvlab.parts.inverses import Cholesky, Eigen
from curvlab.parts.inverted import Inverted
from curvlab.parts.transforms import Ema
from curvlab.precision.full import Full
from curvlab.protocols.backend import Backend, Rounding
from curvlab.protocols.context import Context
from curvlab.protocols.needs import Labels
from curvlab.protocols.preconditioner import Inverse
from curvlab.protocols.step import At
from curvlab.protocols.storage import Storage
from curvlab.protocols.structure import Structure, kronecker_blocks
from curvlab.structures.dense import Dense, DenseMatrix
from curvlab_kfac.layer_covariance import CovarianceState, LayerCovariance
from curvlab_singd.singd import Singd
from plugins.precision.tests.bench import BLOCK, IN, REFERENCE, Drawn, Layer, Outcome, damped, steps

#: the moving average of KFAC's factors, and the rate of IKFAC's
DECAY, RATE = 0.95, 0.1


def kfac(inverse: Inverse) -> Inverted:
    """Dense factors of the data's own gradients, observed and inverted in every step."""
    return Inverted(LayerCovariance(Dense(), Dense(), labels=Labels.DATA, decay=DECAY), inverse)


def ikfac() -> Singd:
    """The inverse-free update of the same factors, from the identity."""
    return Singd(Dense(), Dense(), lr=RATE, momentum=0.0, every=1, coupling="none", fit=0)


@dataclass(frozen=True)
class Unchecked(Inverse):
    """``(A + λI)⁻¹`` of each factor by LU: it exists of indefinite matrices too, and nothing is noticed."""

    def init(self, C: LinearOperator[BlockVector]) -> BlockDiagonal:
        return Cholesky().init(C)

    def __call__(self, C: LinearOperator[BlockVector], ctx: Context) -> BlockDiagonal:
        def inverse(side: Factor | None) -> DenseMatrix:
            assert isinstance(side, Structure)
            found = torch.linalg.inv(damped(side.dense().float(), ctx.damping))
            return DenseMatrix(found.to(side.like.dtype), side.family)

        blocks = kronecker_blocks(C, "unchecked").items()
        return BlockDiagonal({name: Kronecker(inverse(k.B), inverse(k.A)) for name, k in blocks})


# T1: factors


@dataclass(frozen=True)
class Definiteness:
    """Eigenvalues of a factor below zero, and the least λ, in units of the largest, that Cholesky needs."""

    negative: int
    shift: float


def definiteness(backend: Backend, condition: float, count: int = 40) -> Definiteness:
    """Of KFAC's A after ``count`` batches; eigenvalues within rounding of float32 are not negative."""
    layer = Layer(kfac(Unchecked()), backend, damping=1.0)
    for a, g in Drawn(condition).batches(count):
        layer.see(a, g)
    A = factor(layer)
    values = torch.linalg.eigvalsh(A.double())
    top = float(values[-1])
    noise = top * IN * torch.finfo(torch.float32).eps
    shift = next(
        (s for s in (10.0 ** (-k / 4) for k in range(28, -1, -1)) if _regular(A.float(), s * top)), 1.0
    )
    return Definiteness(int((values < -noise).sum()), shift)


def _regular(A: Tensor, shift: float) -> bool:
    try:
        factorizations.cholesky(damped(A, shift))
    except NotPositiveDefinite:
        return False
    return True


def factor(layer: Layer) -> Tensor:
    """KFAC's A as it is stored."""
    estimate: CovarianceState = layer.state.estimate
    return estimate.A[BLOCK].dense()


# T2: averages


def moved(decay: float, rounding: Rounding, dtype: torch.dtype = torch.bfloat16) -> float:
    """The mean of 4,096 averages that stood at 1 and then saw 2 for ten times their memory."""
    layout = BlockLayout({BLOCK: torch.Size((64, 64))})
    work = layout.zeros(like=torch.zeros((), dtype=torch.float32))
    storage = Storage(averages=rounding, noise=torch.Generator().manual_seed(0))
    at = At(work, 0, 1.0, lambda v, c: None, lambda: work, storage=storage)
    average = Ema(decay)
    state = average.init(layout.zeros(like=torch.zeros((), dtype=dtype)))
    memory = round(1 / (1 - decay))
    state.average.flat.fill_(1.0)
    state.count, state.mass = 20 * memory, 1 - decay ** (20 * memory)
    two = work.clone()
    two.flat.fill_(2.0)
    for _ in range(10 * memory):
        average(state, two, at)
    return float(state.average.flat.double().mean())


# T3: products


def negative_diagonals(dtype: torch.dtype, condition: float = 1e6) -> int:
    """Entries below zero of ``diag(Qᵀ A Q)`` by products in a dtype, of a positive A and its eigenbasis."""
    A = Drawn(condition).covariances()[0]
    _, Q = factorizations.eigh(A)
    narrow = Q.to(dtype)
    return int(((narrow.mT @ A.to(dtype) @ narrow).diagonal() < 0).sum())


def moments(backend: Backend, condition: float = 1e6, count: int = 20) -> Tensor:
    """EKFAC's eigenvalues in its basis ``[OUT, IN]``, means of squares, after ``count`` batches."""
    estimator = LayerCovariance(Dense(), Dense(), labels=Labels.DATA, decay=DECAY)
    layer = Layer(Eigenbasis(estimator, decay=DECAY), backend)
    for a, g in Drawn(condition).batches(count):
        layer.see(a, g)
    found: Tensor = layer.state.moments[BLOCK]
    return found.to(REFERENCE)


# T4: directions


def directions(inverse: Inverse | None, backend: Backend, damping: float = 1e-3, count: int = 400) -> Outcome:
    """KFAC with this inverse, or IKFAC, at condition 1e6, against KFAC in float64 with an exact inverse."""
    part = ikfac() if inverse is None else kfac(inverse)
    exact = kfac(inverse if isinstance(inverse, Eigen) else Cholesky())
    truth = Layer(exact, Full("float64"), damping=damping)
    return steps(Layer(part, backend, damping=damping), truth, Drawn(1e6), count)


# T5: range


def squared_rows(backend: Backend, size: float) -> float:
    """The mean diagonal of KFAC's A over ``size²``, of rows of that size."""
    layer = Layer(kfac(Unchecked()), backend, damping=1.0)
    for a, g in Drawn(1.0).batches(1):
        layer.see(a * size, g)
        return float(factor(layer).diagonal().double().mean()) / float(a.square().mean()) / size**2
    raise AssertionError
