"""One layer's factors, fed rows by hand: the part without a model around it.  All in float64."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from curvlab.linalg.power_iteration import probes
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab.protocols.evidence import Evaluation, LayerStats
from curvlab.protocols.structure import Family
from curvlab.structures.diagonal import Diagonal
from curvlab.testing.problems import DTYPE, normal
from curvlab.testing.reference import nearest_member, reference_context
from curvlab_singd.singd import PEAK_EVERY, Singd, SingdState
from curvlab_singd.update import Factors

BLOCK = "fc"


@dataclass
class Fed:
    """``part`` at work on one block ``[o, i]``."""

    part: Singd
    o: int
    i: int
    damping: float = 0.0
    steps: int = 0

    def __post_init__(self) -> None:
        layout = BlockLayout({BLOCK: torch.Size((self.o, self.i))})
        self.zero = layout.zeros(like=torch.zeros((), dtype=DTYPE))
        self.state: SingdState = self.part.init(self.zero, reference_context(self.damping))

    @property
    def factors(self) -> Factors:
        found: Factors = self.state.blocks[BLOCK]
        return found

    @property
    def K(self) -> Tensor:
        return self.factors.K.dense().clone()

    @property
    def C(self) -> Tensor:
        return self.factors.C.dense().clone()

    @property
    def P(self) -> tuple[Tensor, Tensor]:
        """K Kᵀ and C Cᵀ."""
        return self.K @ self.K.mT, self.C @ self.C.mT

    def put(self, K: Tensor, C: Tensor) -> None:
        """Start from these, which must have the pattern."""
        for member, A in ((self.factors.K, K), (self.factors.C, C)):
            given = member.family.member(A).tensors()  # type: ignore[attr-defined]
            for name, tensor in member.tensors().items():
                tensor.copy_(given[name])

    def see(self, a: Tensor, g: Tensor) -> None:
        """One step on the rows of n examples: U_K = aᵀa/n, U_C = gᵀg/n."""
        stats = LayerStats(a.unsqueeze(1), g.view(1, len(a), 1, -1))
        layers = {self.part.labels: {BLOCK: (stats,)}}
        seen = Evaluation(len(a), torch.zeros(()), self.zero, layers)
        self.part.observe(self.state, seen, reference_context(self.damping, step=self.steps))
        self.steps += 1

    def direction(self, v: Tensor) -> Tensor:
        """What the gradient v becomes."""
        vector = BlockVector(self.zero.layout, v.reshape(-1).clone())
        ctx = reference_context(self.damping, step=self.steps)
        return self.part.apply(self.state, vector, ctx).x[BLOCK].clone()


def rows(n: int, d: int, seed: int) -> Tensor:
    """``[n, d]`` whose second moments are not those of white noise."""
    return normal(n, d, seed=seed) * torch.linspace(0.5, 1.5, d, dtype=DTYPE) + 0.3


def moments(x: Tensor) -> Tensor:
    return x.mT @ x / len(x)


def eye(d: int) -> Tensor:
    return torch.eye(d, dtype=DTYPE)


def average(M: Tensor) -> Tensor:
    """tr(M)/d."""
    return M.diagonal().mean()


def iterated(H: Tensor) -> Tensor:
    """The largest ``vᵀH²v / vᵀHv`` over the probes v: one step of power iteration for the norm of H ≥ 0."""
    V = probes(len(H), H)
    found: Tensor = ((H @ V).square().sum(0) / (V * (H @ V)).sum(0).clamp(min=1e-300)).max()
    return found


def over_mean(H: Tensor) -> Tensor:
    """p: what power iteration finds of ‖H‖₂, over the mean of the diagonal; at least 1."""
    return (iterated(H) / average(H)).clamp(min=1.0)


def largest(M: Tensor) -> float:
    """‖M‖₂, exactly."""
    return float(torch.linalg.matrix_norm(M, 2))


def whitened(fed: Fed, a: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Kᵀ U_K K and Cᵀ U_C C, not projected."""
    return fed.K.mT @ moments(a) @ fed.K, fed.C.mT @ moments(g) @ fed.C


@dataclass
class Written:
    """Specs 3 to 5 and the peak, as they are written, on dense matrices: the slow twin of the update.

    Projections are found by least squares over all members of the family.  m is shortened to ``limit``.
    """

    family_K: Family
    family_C: Family
    K: Tensor
    C: Tensor
    damping: float
    beta: float
    alpha: float
    coupling: str
    order: int
    limit: float = math.inf

    def __post_init__(self) -> None:
        self.m_K, self.m_C = torch.zeros_like(self.K), torch.zeros_like(self.C)
        self.seen, self.excess = 0, 1.0

    def see(self, a: Tensor, g: Tensor) -> None:
        K, C, lam = self.K, self.C, self.damping
        H_K, H_C = K.mT @ moments(a) @ K, C.mT @ moments(g) @ C
        if self.coupling != "none":
            if self.coupling == "peak" and self.seen % PEAK_EVERY == 0:
                self.excess = float((over_mean(H_K) * over_mean(H_C)).sqrt())
            self.seen, both = self.seen + 1, self.excess
            on_K = both * average(H_C) * H_K + lam * average(C.mT @ C) * K.mT @ K - eye(len(K))
            on_C = both * average(H_K) * H_C + lam * average(K.mT @ K) * C.mT @ C - eye(len(C))
        else:
            on_K = H_K + lam * K.mT @ K - eye(len(K))
            on_C = H_C + lam * C.mT @ C - eye(len(C))
        self.m_K = self._log_step(self.family_K, self.m_K, on_K)
        self.m_C = self._log_step(self.family_C, self.m_C, on_C)
        self.K, self.C = K @ self._exp(self.m_K), C @ self._exp(self.m_C)

    def _log_step(self, family: Family, m: Tensor, step: Tensor) -> Tensor:
        """The next m, or that much of it that ‖β m‖₂ is the limit; a diagonal knows its norm exactly."""
        m = self.alpha * m + 0.5 * nearest_member(family, step)
        size = m.abs().max() if isinstance(family, Diagonal) else iterated(m.mT @ m).sqrt()
        norm = self.beta * float(size)
        return m * min(1.0, self.limit / max(norm, 1e-300))

    def _exp(self, m: Tensor) -> Tensor:
        X = -self.beta * m
        return eye(len(m)) + X + (0.5 * X @ X if self.order == 2 else 0.0)
