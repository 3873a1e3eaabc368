"""Empirical variational Bayes matrix factorization: which singular values of a matrix are more than noise.

The global analytic solution of Nakajima, Sugiyama, Babacan and Tomioka (2013, JMLR 14, 1–37) for a matrix
that is observed entirely, with the noise variance estimated by minimizing the free energy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

#: zero of the paper's Φ over √α: a component is kept where τ is above τ̄ = 2.5129 √α (its §5, rounded)
TAU = 2.5129

#: the noise variance is at least this fraction of the mean square: that of a matrix of exact low rank is zero
LEAST = 1e-20

#: variances on the first grid, and rounds of golden section, each of which leaves 0.618 of the bracket
GRID, ROUNDS = 512, 60


@dataclass(frozen=True)
class Shrunk:
    """Singular values of an L × M matrix, L ≤ M, after shrinkage, largest first; ``variance``: its noise."""

    values: Float[Tensor, " r"]
    variance: float
    sides: tuple[int, int]

    @property
    def rank(self) -> int:
        """How many are more than noise."""
        return len(self.values)

    @property
    def gain(self) -> float:
        """``Σ d / (L d₁)``, between 0 and 1; 0 at rank 0 (AdaS's knowledge gain)."""
        return float(self.values.sum() / self.values[0]) / self.sides[0] if self.rank else 0.0

    @property
    def condition(self) -> float:
        """``d₁ / d_r``; 0 at rank 0 (AdaS's mapping condition)."""
        return float(self.values[0] / self.values[-1]) if self.rank else 0.0


def shrunk(Y: Float[Tensor, "l m"]) -> Shrunk:
    """The singular values of Y without its noise; in float64 on the host.

    A kept value γ shrinks to ``γ/2 (1 − (L+M)σ²/γ² + √((1 − (L+M)σ²/γ²)² − 4LMσ⁴/γ⁴))``.  The transpose has
    the same.  Costs the singular values, ``O(L² M)``, and some 500 L operations.  Raises ``ValueError`` for a
    matrix that is not finite.
    """
    if not bool(torch.isfinite(Y).all()):
        raise ValueError("the matrix is not finite")
    L, M = sorted(Y.shape)
    s = torch.linalg.svdvals(Y.detach().to("cpu", torch.float64))
    if not float(s[0]) > 0:
        return Shrunk(s[:0], 0.0, (L, M))
    scale = s[0]
    variance = _variance(s / scale, L, M)
    s2, bar = (s / scale).square(), bound(L, M)
    kept = s2[s2 > M * variance * bar]
    share = 1 - (L + M) * variance / kept
    d = (
        kept.sqrt()
        / 2
        * (share + (share.square() - 4 * L * M * variance**2 / kept.square()).clamp(min=0).sqrt())
    )
    return Shrunk(d * scale, variance * float(scale) ** 2, (L, M))


def bound(L: int, M: int) -> float:
    """``x̄``: a component counts where γ²/(Mσ²) is above it."""
    alpha = L / M
    tau = TAU * math.sqrt(alpha)
    return (1 + tau) * (1 + alpha / tau)


def free_energy(variance: Float[Tensor, " v"], s: Float[Tensor, " l"], L: int, M: int) -> Float[Tensor, " v"]:
    """The free energy of noise variances, over M and without what does not depend on them."""
    alpha, x = L / M, s.square() / (M * variance.unsqueeze(-1))
    over = x > bound(L, M)
    far = x.where(over, (1 + math.sqrt(alpha)) ** 2 + 1.0) - (1 + alpha)  # any value where it is not used
    tau = 0.5 * (far + (far.square() - 4 * alpha).sqrt())
    kept = torch.log1p(tau) + alpha * torch.log1p(tau / alpha) - tau
    return L * variance.log() + x.sum(-1) + kept.where(over, 0.0).sum(-1)


def _variance(s: Float[Tensor, " l"], L: int, M: int) -> float:
    """The noise variance of least free energy within the paper's bounds (its Theorem 3)."""
    squares = s.square()
    upper = float(squares.sum()) / (L * M)
    most = math.ceil(L / (1 + L / M)) - 1  # no more components than this
    rest = squares[most:]
    lower = max(float(rest[0]) / (M * bound(L, M)), float(rest.mean()) / M, upper * LEAST)
    if lower >= upper:
        return upper
    grid = torch.linspace(math.log(lower), math.log(upper), GRID, dtype=torch.float64, device="cpu")
    best = int(free_energy(grid.exp(), s, L, M).argmin())
    a, b = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, GRID - 1)])
    inner = (math.sqrt(5) - 1) / 2
    for _ in range(ROUNDS):
        left, right = b - inner * (b - a), a + inner * (b - a)
        f = free_energy(torch.tensor([left, right], dtype=torch.float64, device="cpu").exp(), s, L, M)
        a, b = (a, right) if f[0] <= f[1] else (left, b)
    return math.exp(0.5 * (a + b))
