"""z = H v for the inverse H that BFGS makes of pairs: in two sweeps, and pair by pair.

``two_loops`` is the recursion of Nocedal 1980, two passes of dot and axpy over the pairs.  ``in_two_sweeps``
computes the same in blocks, as the compact form does (Byrd, Nocedal and Schnabel 1994): with R the upper
triangle of SᵀY and D its diagonal,

    α = R⁻¹ Sᵀv,   q = v − Y α,   β = R⁻ᵀ (D α − γ Yᵀq),   H v = γ q + S β

It reads S twice and Y once, stretch by stretch.  The compact form's one formula gets Yᵀq from YᵀY instead
and reads both twice; it subtracts what nearly cancels where H v is small, and was up to 30 times less
accurate in float32 (``asv_benchmarks/lbfgs_inverse.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from curvlab.linalg import factorizations
from curvlab.linalg.vectors import BlockVector
from curvlab_lbfgs.memory import Memory, least_cosine

#: coordinates that are worked on together: 16 rows of them are 4 MiB in float32
STRETCH = 2**16


@dataclass(frozen=True)
class Weights:
    """What H needs beside the vectors, for one damping; k pairs, oldest first.

    With Δ = λ − the damping that a pair holds for, the pair for λ is ``(s, y + Δ s)``; R and D are of those.
    """

    damping: float
    rows: Int[Tensor, " k"]  #: where in the memory the pairs lie
    top: int  #: one more than the last of those
    gamma: float  #: H₀ = γ I
    R: Float[Tensor, "k k"]
    below: Float[Tensor, "k k"]  #: the rest of SᵀY, strictly below the diagonal
    SY: Float[Tensor, "k k"]  #: as held, not shifted
    shift: Float[Tensor, " k"] | None  #: Δ by pair; ``None`` if it is zero for all


def weights(memory: Memory, damping: float) -> Weights | None:
    """H's small matrices for λ = ``damping``; ``None`` if no pair is admissible there.

    γ is sᵀy / yᵀy of the newest pair.  Costs O(k²) on the CPU.
    """
    if memory.count == 0:
        return None
    rows = torch.tensor(memory.order, device="cpu")
    shift = damping - memory.damping[rows]
    SS, SY = memory.gram[:, rows[:, None], rows]
    ss, sy, yy = SS.diagonal(), SY.diagonal(), memory.yy[rows]
    yy = yy + 2 * shift * sy + shift.square() * ss
    sy = sy + shift * ss
    kept = sy > least_cosine(memory.rows.dtype) * (ss * yy).sqrt()
    if not bool(kept.any()):
        return None
    shifted = (SY + SS * shift)[kept][:, kept]
    device = memory.rows.device
    return Weights(
        damping=damping,
        rows=rows[kept].to(device),
        top=int(rows[kept].max()) + 1,
        gamma=float(sy[kept][-1] / yy[kept][-1]),
        R=shifted.triu().to(device),
        below=shifted.tril(-1).to(device),
        SY=SY[kept][:, kept].to(device),
        shift=shift[kept].to(device) if bool(shift.any()) else None,
    )


def in_two_sweeps(memory: Memory, w: Weights, v: BlockVector) -> BlockVector:
    """H v; small systems in float64, one vector of v's length allocated, no transfer to the CPU.

    Costs four products of a matrix of k rows with a vector, whatever the damping.
    """
    S, Y = memory.rows[:, : w.top]
    z = v.empty_like()
    parts = _parts(S, Y, v.flat, z.flat)
    alpha = _solved(w.R, _gathered((s @ x for s, _, x, _ in parts), w), upper=True)
    spread = _spread(alpha, w, v.dtype)
    # a part of Y is read twice, for q = v − Y α and for Yᵀq, but the second time it is still in the cache
    right = _gathered((y @ torch.addmv(x, y.mT, spread, alpha=-1, out=q) for _, y, x, q in parts), w)
    if w.shift is not None:  # q = z − S Δα; Sᵀq is known, because R α = Sᵀv takes all but `below` off it
        right = right - w.SY.mT @ (w.shift * alpha) - w.shift * (w.below @ alpha)
    beta = _solved(w.R.mT, w.R.diagonal() * alpha - w.gamma * right, upper=False)
    if w.shift is not None:
        beta = beta - w.gamma * w.shift * alpha
    spread = _spread(beta, w, v.dtype)
    for s, _, _, q in parts:
        torch.addmv(q, s.mT, spread, beta=w.gamma, out=q)
    return z


def around(
    memory: Memory, w: Weights, v: BlockVector, initial: Callable[[BlockVector], BlockVector]
) -> BlockVector:
    """H v for another H₀ than γI: ``z = H₀ (v − Y α)``, ``H v = z + S R⁻ᵀ (D α − Yᵀz)``.

    ``initial`` returns a vector of its own.  Costs four products of a matrix of k rows with a vector (six if
    the damping is another than that of the pairs) and one ``initial``.
    """
    S, Y = memory.rows[:, : w.top]
    alpha = _solved(w.R, (S @ v.flat).double()[w.rows], upper=True)
    q = v.empty_like()
    torch.addmv(v.flat, Y.mT, _spread(alpha, w, v.dtype), alpha=-1, out=q.flat)
    if w.shift is not None:
        q.flat.addmv_(S.mT, _spread(w.shift * alpha, w, v.dtype), alpha=-1)
    z = initial(q)
    right = (Y @ z.flat).double()[w.rows]
    if w.shift is not None:
        right += w.shift * (S @ z.flat).double()[w.rows]
    beta = _solved(w.R.mT, w.R.diagonal() * alpha - right, upper=False)
    z.flat.addmv_(S.mT, _spread(beta, w, v.dtype))
    return z


def _parts(
    S: Float[Tensor, "t D"], Y: Float[Tensor, "t D"], v: Float[Tensor, " D"], z: Float[Tensor, " D"]
) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """The same stretch of coordinates of each; on the CPU as long as fits a cache, elsewhere all at once."""
    stretch = STRETCH if v.device.type == "cpu" else len(v)
    at = range(0, len(v), stretch)
    return [
        (S[:, k : k + stretch], Y[:, k : k + stretch], v[k : k + stretch], z[k : k + stretch]) for k in at
    ]


def two_loops(
    pairs: Sequence[tuple[Tensor, Tensor]], v: Float[Tensor, " D"], gamma: float | None = None
) -> Float[Tensor, " D"]:
    """H v for pairs (s, y), oldest first: the reference for ``in_two_sweeps``.

    γ is sᵀy / yᵀy of the newest pair unless given.  Costs 4·D multiply-adds a pair, and as many launches.
    """
    s, y = pairs[-1]
    if gamma is None:
        gamma = float(s @ y / (y @ y))
    q, alphas = v.clone(), list[float]()
    for s, y in reversed(pairs):
        alphas.append(float(s @ q / (s @ y)))
        q.add_(y, alpha=-alphas[-1])
    q.mul_(gamma)
    for (s, y), alpha in zip(pairs, reversed(alphas), strict=True):
        q.add_(s, alpha=alpha - float(y @ q / (s @ y)))
    return q


def _gathered(products: Iterable[Float[Tensor, " t"]], w: Weights) -> Float[Tensor, " k"]:
    """Inner products with the pairs' rows, of all stretches together; summed in float64."""
    return torch.stack([p.double() for p in products]).sum(0)[w.rows]


def _spread(x: Float[Tensor, " k"], w: Weights, dtype: torch.dtype) -> Float[Tensor, " t"]:
    """One number per pair as one per row; zero for rows that hold no pair."""
    spread = x.new_zeros(w.top, dtype=dtype)
    spread[w.rows] = x.to(dtype)
    return spread


def _solved(
    triangle: Float[Tensor, "k k"], right: Float[Tensor, " k"], *, upper: bool
) -> Float[Tensor, " k"]:
    solution: Tensor = factorizations.solve_triangular(triangle, right[:, None], upper=upper)
    return solution[:, 0]
