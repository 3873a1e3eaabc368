"""Transform: no row of the update much shorter than its weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from curvlab.linalg.matrices import matrices
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.bounds import NotNegative, check_bounds
from curvlab.protocols.step import At, Transform


@dataclass(frozen=True)
class RowFloor(Transform[None]):
    """A row of the update shorter than ``ratio`` times the same row of the weight gets that length.

    ``U_r ← U_r · max(1, ratio · ‖W_r‖ / ‖U_r‖)`` for every row r of every weight matrix; a row holds the
    weights of one output.  With step rate η each row then moves by η · ratio of its length at least.  A row
    of zeros has no direction and stays; biases and scales of norms keep their update.  ``ratio = 0`` changes
    nothing.

    Costs three passes over the parameters; holds nothing.  Source: "RowFloor" of the modded-nanogpt records,
    track 3 (2026), there with ratio 0.3825 of Muon's updates.
    """

    fallible = False
    separable = True

    ratio: NotNegative  #: least length of a row of the update, over that of the weight's row

    def __post_init__(self) -> None:
        check_bounds(self)

    def init(self, like: BlockVector) -> None:
        return None

    def __call__(self, state: None, v: BlockVector, at: At) -> BlockVector:
        if not self.ratio:
            return v
        out = v.owned()
        for (_, _, update), (_, _, weight) in zip(matrices(out), matrices(at.read()), strict=True):
            length = torch.linalg.vector_norm(update, dim=1, keepdim=True)
            least = self.ratio * torch.linalg.vector_norm(weight, dim=1, keepdim=True)
            short = (length > 0) & (length < least)
            # divided first: the quotient of the lengths may overflow, a unit vector times a length does not
            lifted = update / torch.where(short, length, torch.ones_like(length)) * least
            update.copy_(torch.where(short, lifted, update))
        return out
