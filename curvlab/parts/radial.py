"""Transform: less of the update's component along each weight matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from curvlab.linalg.matrices import matrices
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import Portion, check_bounds
from curvlab.protocols.step import At, Transform


@dataclass(frozen=True)
class RadialBrake(Transform[None]):
    """The component of the update along each weight matrix W is multiplied by a factor between 0 and 1.

    ``U ← U − (1 − s) ⟨U, Ŵ⟩ Ŵ``, Ŵ = W / ‖W‖ (Frobenius).  s is ``outward`` where the step, which subtracts
    U, makes W longer (⟨U, Ŵ⟩ < 0), and ``inward`` where it makes W shorter.  Two ones change nothing; two
    zeros leave no component along W.  Biases, scales of norms and matrices of zeros keep their update.

    Costs three passes over the parameters; holds nothing.  Source: entry "dampen radial gradient component"
    of the modded-nanogpt records, track 3 (2026), whose factors are the defaults.
    """

    fallible = False
    separable = True

    outward: Portion = 0.5  #: factor of what makes the matrix longer
    inward: Portion = 1.0  #: factor of what makes the matrix shorter

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, like: BlockVector) -> None:
        return None

    def __call__(self, state: None, v: BlockVector, at: At) -> BlockVector:
        if self.outward == self.inward == 1.0:
            return v
        out = v.owned()
        for (_, _, update), (_, _, weight) in zip(matrices(out), matrices(at.read()), strict=True):
            norm = torch.linalg.vector_norm(weight)
            unit = weight / torch.where(norm > 0, norm, torch.ones_like(norm))
            along = (update * unit).sum()
            gone = torch.where(along < 0, 1 - self.outward, 1 - self.inward)
            update.sub_(unit.mul_(gone * along))
        return out
