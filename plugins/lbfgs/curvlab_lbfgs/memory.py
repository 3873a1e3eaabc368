"""The pairs of a limited memory: where they lie, which are let in, and their inner products.

A pair is kept at ``‖s‖ = 1``: BFGS does not depend on a common factor of s and y, and products of long ones
and short ones do not leave float32.  Inner products of all pairs are kept in float64 beside them, so that
using the pairs for another damping costs nothing that is as long as a vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.secants import Secant
from curvlab.linalg.vectors import BlockVector

#: coordinates whose inner products are taken together: four times as fast as all at once, on the CPU
STRETCH = 2**14

#: a pair is let in if the cosine of the angle between s and y is above this
LEAST_COSINE = {torch.float64: 1e-10, torch.float32: 1e-6}


def least_cosine(dtype: torch.dtype) -> float:
    """What rounding in this dtype leaves of a cosine; below it the sign of sᵀy means nothing."""
    return LEAST_COSINE.get(dtype, 10 * torch.finfo(dtype).eps)


@dataclass
class Memory:
    """Pairs ``y = (C + damping · I) s`` in rows that are used in turn.

    ``count`` of them, the oldest in row ``first``; the row behind the newest is free, and while ``waiting``
    it holds a step whose change of gradient is not known yet: ``(s, −gradient)``.
    """

    rows: Float[Tensor, "2 r D"]  #: every s, every y
    gram: Float[Tensor, "2 r r"]  #: s_iᵀs_j, s_iᵀy_j; float64, on the CPU
    yy: Float[Tensor, " r"]  #: ‖y_i‖²; likewise
    damping: Float[Tensor, " r"]  #: λ that each pair holds for; float64, on the CPU
    first: int = 0
    count: int = 0
    waiting: bool = False

    @property
    def order(self) -> list[int]:
        """The rows in use, oldest first."""
        return [(self.first + k) % self.rows.shape[1] for k in range(self.count)]


def empty(rows: int, like: BlockVector) -> Memory:
    """No pair yet; ``2 · rows`` vectors like ``like``."""
    small = torch.zeros((), dtype=torch.float64, device="cpu")
    return Memory(
        like.flat.new_zeros(2, rows, like.layout.size),
        small.new_zeros(2, rows, rows),
        small.new_zeros(rows),
        small.new_zeros(rows),
    )


def forget(memory: Memory) -> int:
    """Drop every pair; how many there were."""
    count, memory.first, memory.count, memory.waiting = memory.count, 0, 0, False
    return count


def learn(memory: Memory, pairs: Sequence[Secant], *, running: bool = False) -> int:
    """Hold the admissible ones of ``pairs``, oldest first; how many those are.

    In place of what is held, or, if ``running``, for the oldest of it where there is no room.  If none is
    admissible, what is held stays.  If there are more pairs than rows, the last are held.
    """
    rows = memory.rows.shape[1]
    good = [(pair, norm) for pair in pairs if (norm := _admitted(pair))][-rows:]
    if not good:
        return 0
    if not running:
        forget(memory)
    for pair, norm in good:
        free = _free(memory)
        for row, vector in zip(memory.rows[:, free], (pair.s, pair.y), strict=True):
            torch.mul(vector.flat, 1 / norm, out=row)
        memory.damping[free] = pair.damping
        if memory.count == rows:
            memory.first = (memory.first + 1) % rows
        else:
            memory.count += 1
    _multiply(memory, max(memory.order) + 1)
    return len(good)


def _multiply(memory: Memory, top: int) -> None:
    """Inner products of the pairs in the first ``top`` rows, anew."""
    S, Y = memory.rows[:, :top]
    found, yy = S.new_zeros(2, top, top, dtype=torch.float64), S.new_zeros(top, dtype=torch.float64)
    stretch = STRETCH if S.device.type == "cpu" else S.shape[1]
    for k in range(0, S.shape[1], stretch):
        s, y = S[:, k : k + stretch], Y[:, k : k + stretch]
        found[0] += s @ s.mT
        found[1] += s @ y.mT
        yy += y.square().sum(1)
    memory.gram[:, :top, :top], memory.yy[:top] = found, yy


def begin(memory: Memory, update: BlockVector, alpha: float, gradient: BlockVector) -> None:
    """A step ``s = −alpha · update`` was taken from where the gradient is ``gradient``."""
    s, y = memory.rows[:, _free(memory)]
    torch.mul(update.flat, -alpha, out=s)
    torch.neg(gradient.flat, out=y)
    memory.waiting = True


def complete(memory: Memory, gradient: BlockVector) -> bool:
    """The gradient where that step led; whether the pair was let in, for the oldest if there is no room.

    Costs four products of a matrix of all s, or of all y, with a vector.
    """
    assert memory.waiting, "no step was begun"
    memory.waiting = False
    free = _free(memory)
    pair = memory.rows[:, free]
    pair[1].add_(gradient.flat)
    norm = float(torch.linalg.vector_norm(pair[0]))
    if not 0 < norm < math.inf:
        pair.zero_()  # a free row is multiplied by zero, which must be zero
        return False
    pair.mul_(1 / norm)
    if not acute(float(pair[0] @ pair[1]), float(pair[1] @ pair[1]), memory.rows.dtype):
        pair.zero_()
        return False
    if memory.count == memory.rows.shape[1] - 1:
        memory.first, memory.count = (memory.first + 1) % memory.rows.shape[1], memory.count - 1
    memory.count += 1
    top = max(memory.order) + 1
    with_s = (memory.rows[0, :top] @ pair.mT).to("cpu", torch.float64)
    with_y = (memory.rows[1, :top] @ pair.mT).to("cpu", torch.float64)
    ss, sy = memory.gram
    ss[free, :top] = ss[:top, free] = with_s[:, 0]
    sy[:top, free], sy[free, :top] = with_s[:, 1], with_y[:, 0]
    memory.yy[free] = with_y[free, 1]
    memory.damping[free] = 0.0
    return True


def _free(memory: Memory) -> int:
    return (memory.first + memory.count) % memory.rows.shape[1]


def _admitted(pair: Secant) -> float:
    """‖s‖ of an admissible pair, else 0."""
    norm = float(pair.s.norm())
    if not 0 < norm < math.inf:
        return 0.0
    sy, y = float(pair.s.dot(pair.y)) / norm, float(pair.y.norm())
    return norm if acute(sy, y * y, pair.s.dtype) else 0.0


def acute(sy: float, yy: float, dtype: torch.dtype, *, ss: float = 1.0) -> bool:
    """Whether sᵀy is safely positive."""
    return math.isfinite(yy) and sy > least_cosine(dtype) * math.sqrt(ss * yy)
