"""Three ways to apply the inverse of limited-memory BFGS: milliseconds, and their errors in float32.

    OMP_NUM_THREADS=1 python asv_benchmarks/lbfgs_inverse.py [--rounds 9] [--largest 5000000]

Pair by pair is the recursion (``two_loops``); two sweeps are what the plugin does (``in_two_sweeps``); one
formula is the compact form with YᵀY known beforehand, written out here.  The ways take turns, so that a busy
machine is busy for all of them; medians of the rounds.  Errors are relative to the recursion in float64, the
largest of a random vector, of residuals of the solve, and of a vector that H makes small.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from curvlab.linalg.secants import Secant
from curvlab.linalg.vectors import BlockLayout, BlockVector
from curvlab_lbfgs.inverse import in_two_sweeps, two_loops, weights
from curvlab_lbfgs.memory import Memory, empty, learn

SIZES = ((1_000, 16), (30_000, 16), (300_000, 16), (1_400_000, 16), (1_400_000, 32), (5_000_000, 16))

#: the solve whose pairs are used: spectrum k^−1.5 + 1e-3
DIMENSION, ITERATIONS = 100_000, 64


def main() -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--largest", type=int, default=5_000_000, help="D of the largest timing")
    given = parser.parse_args()
    print("| D, m | dtype | pair by pair | two sweeps | one formula |\n|---|---|--:|--:|--:|")
    for size, m in SIZES:
        for dtype in (torch.float32, torch.float64):
            if size <= given.largest:
                times = timed(ways(random_pairs(size, m, dtype)), size * m, given.rounds)
                print(
                    f"| {size:,}, {m} | {dtype} | " + " | ".join(f"{t:.2f}" for t in times) + " |", flush=True
                )
    print("\n| pairs of a solve, float32 | pair by pair | two sweeps | one formula |\n|---|--:|--:|--:|")
    S, Y, residuals, spectrum = solve()
    vectors = [torch.randn(DIMENSION, dtype=torch.float64), *residuals, spectrum * torch.randn(DIMENSION)]
    for name, chosen in {
        "first 16": slice(0, 16),
        "last 16": slice(-16, None),
        "every 4th": slice(0, None, 4),
        "all 64": slice(None),
    }.items():
        worst = errors(S[chosen].float(), Y[chosen].float(), [v.float() for v in vectors])
        print(f"| {name} | " + " | ".join(f"{e:.0e}" for e in worst) + " |", flush=True)


def vector(x: Tensor) -> BlockVector:
    """One block."""
    return BlockVector(BlockLayout({"x": (x.numel(),)}), x)


def held(S: Tensor, Y: Tensor) -> Memory:
    """The pairs in a memory."""
    memory = empty(len(S), vector(S[0]))
    assert learn(memory, [Secant(vector(s), vector(y), 0.0) for s, y in zip(S, Y, strict=True)]) == len(S)
    return memory


def random_pairs(size: int, m: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """S, Y of a diagonal matrix, and a vector."""
    generator = torch.Generator().manual_seed(0)
    S = torch.randn(m, size, dtype=dtype, generator=generator)
    return (
        S,
        S * torch.linspace(0.5, 2.0, size, dtype=dtype),
        torch.randn(size, dtype=dtype, generator=generator),
    )


def ways(case: tuple[Tensor, Tensor, Tensor]) -> list[Callable[[], Tensor]]:
    """The three ways, ready to run."""
    S, Y, v = case
    memory = held(S, Y)
    S, Y = memory.rows  # at ‖s‖ = 1, as all three see them
    w, pairs = weights(memory, 0.0), list(zip(S, Y, strict=True))
    assert w is not None
    known, middle = w, compact(S, Y, w.gamma)
    return [
        lambda: two_loops(pairs, v, known.gamma),
        lambda: in_two_sweeps(memory, known, vector(v)).flat,
        lambda: one_formula(S, Y, known.gamma, middle, v),
    ]


def compact(S: Tensor, Y: Tensor, gamma: float) -> Tensor:
    """The matrix in the middle of the compact form: H = γI + [S Y]ᵀ middle [S Y]."""
    SY, YY = (S @ Y.mT).double(), (Y @ Y.mT).double()
    unit = torch.eye(len(S), dtype=torch.float64)
    R = torch.linalg.solve_triangular(SY.triu(), unit, upper=True)
    corner = R.mT @ (SY.diagonal().diag() + gamma * YY) @ R
    return torch.cat([torch.cat([corner, -gamma * R.mT], 1), torch.cat([-gamma * R, torch.zeros_like(R)], 1)])


def one_formula(S: Tensor, Y: Tensor, gamma: float, middle: Tensor, v: Tensor) -> Tensor:
    """H v by the compact form."""
    c = (middle @ torch.cat([S @ v, Y @ v]).double()).to(v.dtype)
    return torch.addmv(v, S.mT, c[: len(S)], beta=gamma).addmv_(Y.mT, c[len(S) :])


def timed(runs: list[Callable[[], Tensor]], work: int, rounds: int) -> list[float]:
    """Milliseconds of each, medians."""
    repeats = min(max(3, 20_000_000 // work), 200)
    found: list[list[float]] = [[] for _ in runs]
    for _ in range(rounds + 1):
        for run, times in zip(runs, found, strict=True):
            start = time.perf_counter()
            for _ in range(repeats):
                run()
            times.append((time.perf_counter() - start) / repeats * 1e3)
    return [median(times[1:]) for times in found]  # the first round warms up


def solve() -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """S, Y and some residuals of conjugate gradients, and the diagonal that they are of, in float64."""
    torch.manual_seed(0)
    diagonal = torch.arange(1, DIMENSION + 1, dtype=torch.float64) ** -1.5 + 1e-3
    r = torch.randn(DIMENSION, dtype=torch.float64)
    p, steps, residuals = r.clone(), [], []
    for k in range(ITERATIONS):
        Ap = diagonal * p
        after = r - float(r @ r / (p @ Ap)) * Ap
        steps.append(p / p.norm())
        p, r = after + float(after @ after / (r @ r)) * p, after
        if k % 8 == 0:
            residuals.append(r)
    S = torch.stack(steps)
    return S, S * diagonal, residuals, diagonal


def errors(S: Tensor, Y: Tensor, vectors: list[Tensor]) -> list[float]:
    """The largest relative error of each way."""
    worst = [0.0, 0.0, 0.0]
    for v in vectors:
        runs = ways((S, Y, v))
        S1, Y1 = held(S, Y).rows.double()
        gamma = float(S1[-1] @ Y1[-1] / (Y1[-1] @ Y1[-1]))
        exact = two_loops(list(zip(S1, Y1, strict=True)), v.double(), gamma)
        for k, run in enumerate(runs):
            worst[k] = max(worst[k], float((run().double() - exact).norm() / exact.norm()))
    return worst


if __name__ == "__main__":
    main()
