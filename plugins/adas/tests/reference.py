"""EVBMF by a slow path of its own: scalar formulas, and a minimum looked for at very many variances.

    python plugins/adas/tests/reference.py 1000

compares the fast path on so many random matrices: of noise, of low rank with noise, of exact low rank, and
long ones.  It says how many differ in rank, and the largest relative difference of a kept value.
"""

from __future__ import annotations

import math
import sys

import numpy as np
import torch

from curvlab_adas.evbmf import shrunk

#: variances looked at, evenly in their logarithm, and rounds between the neighbors of the best
LOOKS, AGAIN = 1_000, 6


def slow(Y: np.ndarray) -> tuple[list[float], float]:
    """Kept values and noise variance, by loops over the singular values."""
    L, M = min(Y.shape), max(Y.shape)
    gammas = sorted((float(g) for g in np.linalg.svd(Y, compute_uv=False)), reverse=True)
    alpha = L / M
    tau_bar = 2.5129 * math.sqrt(alpha)
    x_bar = (1 + tau_bar) * (1 + alpha / tau_bar)

    def tau(x: float) -> float:
        """The larger root of ``t² − (x − 1 − α) t + α = 0``, so that ``x = (1 + t)(1 + α/t)``."""
        p = x - 1 - alpha
        return (p + math.sqrt(max(p * p - 4 * alpha, 0.0))) / 2

    def energy(variance: float) -> float:
        total = 0.0
        for g in gammas:
            x = g * g / (M * variance)
            if x > x_bar:
                t = tau(x)
                total += x - t + math.log((t + 1) * variance) + alpha * math.log(t / alpha + 1)
            else:
                total += x + math.log(variance)
        return total

    upper = sum(g * g for g in gammas) / (L * M)
    if upper == 0.0:
        return [], 0.0
    most = math.ceil(L / (1 + alpha)) - 1
    tail = gammas[most:]
    lower = max(tail[0] ** 2 / (M * x_bar), sum(g * g for g in tail) / (M * len(tail)), 1e-20 * upper)
    best = upper
    a, b = math.log(min(lower, upper)), math.log(upper)
    for looks in (LOOKS, *[100] * AGAIN):
        points = [a + (b - a) * k / looks for k in range(looks + 1)]
        k = min(range(looks + 1), key=lambda k: energy(math.exp(points[k])))
        best = math.exp(points[k])
        a, b = points[max(k - 1, 0)], points[min(k + 1, looks)]
    kept = []
    for g in gammas:
        if g * g > M * best * x_bar:
            t = tau(g * g / (M * best))
            kept.append(M * best * t / g)  # γ d = M σ² τ: the paper's estimate in terms of τ
    return kept, best


def matrix(seed: int) -> np.ndarray:
    """A random matrix: of noise alone, of low rank with more or less noise, or of exact low rank."""
    rng = np.random.default_rng(seed)
    rows, columns = int(rng.integers(1, 9)), int(rng.integers(1, 25))
    rank, noise = int(rng.integers(0, 5)), float(rng.choice([0.0, 0.01, 0.1, 0.5, 1.0]))
    if rank == 0 and noise == 0.0:
        noise = 1.0
    signal = rng.normal(size=(rows, rank)) @ rng.normal(size=(rank, columns))
    return signal + noise * rng.normal(size=(rows, columns))


def difference(seed: int) -> tuple[int, int, float]:
    """Both ranks, and the largest relative difference of kept values."""
    Y = matrix(seed)
    mine, (theirs, _) = shrunk(torch.from_numpy(Y)), slow(Y)
    pairs = zip(mine.values.tolist(), theirs, strict=False)
    return mine.rank, len(theirs), max((abs(a - b) / b for a, b in pairs), default=0.0)


if __name__ == "__main__":
    found = [difference(seed) for seed in range(int(sys.argv[1]))]
    wrong = [seed for seed, (a, b, _) in enumerate(found) if a != b]
    worst = max(d for a, b, d in found if a == b)
    print(
        f"{len(found)} matrices; ranks differ for {len(wrong)} {wrong[:10]}; largest difference {worst:.2e}"
    )
