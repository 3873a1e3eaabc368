"""Transform: each weight matrix stays on the sphere of its first norm."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.matrices import matrices
from curvlab.linalg.vectors import BlockVector
from curvlab.linalg.work import work_dtype
from curvlab.protocols.step import At, Transform

#: a radius that was not measured yet
_UNKNOWN = -1.0


@dataclass
class Radii:
    """The radius of every parameter, by block; −1 until the first step, and for those that have none."""

    of: dict[str, Float[Tensor, " p"]] = field(default_factory=dict)


@dataclass(frozen=True)
class Hyperball(Transform[Radii]):
    """The step of each weight matrix W ends on the sphere of radius R, the norm that W had before its first
    step.

    ``W⁺ = R · (W − η U') / ‖W − η U'‖`` with step rate η and Frobenius norms; the result is (W − W⁺) / η, so
    that the step lands there.  ``U' = R · U / ‖U‖`` where ``relative`` (the default): η is the step's length
    over R, whatever the length of the update; otherwise ``U' = U``.  With ``tangent``, U first loses its
    component along W; where relative, each step then turns W by the angle arctan η.

    Biases and scales of norms keep their update, as does a matrix that is zero before its first step, which
    has no sphere.  Weight decay before this part changes only directions.  It must be the last part of
    ``on_update`` with a step rule whose rate is prescribed, as ``rate``.  Parameters in bfloat16 are on the
    sphere as exactly as they are rounded; the radius is kept in float32, so that errors do not add up.

    Holds a number for each parameter; costs four passes.  Source: Wen et al. 2026, arXiv 2606.16899.
    """

    fallible = False
    separable = True
    lands = True

    relative: bool = True  #: whether the rate is relative to the radius
    tangent: bool = False  #: whether the update is projected on the tangent space first

    def init(self, like: BlockVector) -> Radii:
        unknown = like.flat.to(work_dtype(like.dtype)).new_full
        return Radii({n: unknown((len(c),), _UNKNOWN) for n, c in like.layout.columns.items()})

    def __call__(self, state: Radii, v: BlockVector, at: At) -> BlockVector:
        out = v.owned()
        # a rate that is smaller moves no entry of W that is not about zero, and its reciprocal may overflow
        least = torch.finfo(v.dtype).tiny ** 0.5
        for (name, columns, update), (_, _, weight) in zip(matrices(out), matrices(at.read()), strict=True):
            rate = at.lr * at.ratio(columns.parameter)
            radius = state.of[name][v.layout.columns[name].index(columns)]
            norm = torch.linalg.vector_norm(weight)
            radius.copy_(torch.where(radius < 0, norm.to(radius.dtype), radius))
            if abs(rate) > least:
                landed = self._landed(weight, update, radius.to(update.dtype), norm, rate)
                update.copy_(torch.where(radius > 0, (weight - landed) / rate, update))
        return out

    def _landed(
        self, weight: Tensor, update: Tensor, radius: Tensor, norm: Tensor, rate: float
    ) -> Float[Tensor, "o c"]:
        """W⁺, on the sphere; anything where the radius is zero."""
        step = update
        if self.tangent:
            unit = weight / _divisor(norm)
            step = step - (step * unit).sum() * unit
        if self.relative:
            step = step / _divisor(torch.linalg.vector_norm(step)) * radius
        moved = weight - rate * step
        found: Tensor = moved / _divisor(torch.linalg.vector_norm(moved)) * radius
        return found


def _divisor(norm: Tensor) -> Tensor:
    """A norm to divide by: 1 instead of 0, where what is divided is 0."""
    return torch.where(norm > 0, norm, torch.ones_like(norm))
