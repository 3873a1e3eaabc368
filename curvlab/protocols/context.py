"""What every part is told about the step it works in."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from curvlab.linalg.compose import InDtype
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.backend import Backend
from curvlab.protocols.dtypes import Role
from curvlab.protocols.storage import Storage


@dataclass(frozen=True)
class Context:
    """Step number (from 0), damping λ of ``C + λI``, arithmetic, randomness, and how states are written.

    States are allocated by ``zeros`` and ``like``, in the dtype of their role; a part names no dtype.
    """

    step: int
    damping: float
    backend: Backend
    generator: torch.Generator
    storage: Storage = field(default_factory=Storage)

    def like(self, v: BlockVector, role: Role) -> Tensor:
        """An empty tensor on the vector's device, of the dtype of what is stored in this role."""
        return v.flat.new_empty(0, dtype=self.backend.dtypes.of(role))

    def zeros(self, v: BlockVector, role: Role) -> BlockVector:
        """A vector of zeros for the same blocks, in the dtype of what is stored in this role."""
        return v.layout.zeros(like=self.like(v, role))

    def product(self, operator: LinearOperator[BlockVector], v: BlockVector, role: Role) -> BlockVector:
        """``operator`` times ``v``, whose factors are stored in this role: in their dtype, rounded to v's."""
        return InDtype(operator, self.backend.dtypes.of(role)) @ v
