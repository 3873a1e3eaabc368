"""What every part can read about the step it works in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
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

    ``ridge`` is curvature ρI by block that penalties of callbacks add to that of the loss; a part that is
    ``ridged`` reads λ by ``damping_of``.

    States are allocated by ``zeros`` and ``like``, in the dtype of their role; a part names no dtype.
    """

    step: int
    damping: float
    backend: Backend
    generator: torch.Generator
    storage: Storage = field(default_factory=Storage)
    ridge: Mapping[str, float] = field(default_factory=dict)

    def damping_of(self, block: str, mean: Tensor | float | None = None) -> Tensor | float:
        """λ of one block, its ``ridge`` included: λ + ρ, or λ + ρ/mean in units of its mean curvature.

        A mean that is not positive counts as none: λ alone.
        """
        extra = self.ridge.get(block, 0.0)
        if not extra:
            return self.damping
        if mean is None:
            return self.damping + extra
        if isinstance(mean, Tensor):
            return torch.where(mean > 0, self.damping + extra / mean, self.damping)
        return self.damping + (extra / mean if mean > 0 else 0.0)

    def randomness(self, block: str) -> torch.Generator:
        """Random numbers for one block in this step: the same in every process and for every other block set.

        They follow from the method's seed, the step and the block's name; a step that is made again draws
        them again.
        """
        words = f"{self.generator.initial_seed()} {self.step} {block}".encode()
        seed = int.from_bytes(hashlib.sha256(words).digest()[:8], "big") >> 1
        return torch.Generator(device=self.generator.device).manual_seed(seed)

    def like(self, v: BlockVector, role: Role) -> Tensor:
        """An empty tensor on the vector's device, of the dtype of what is stored in this role."""
        return v.flat.new_empty(0, dtype=self.backend.dtypes.of(role))

    def zeros(self, v: BlockVector, role: Role) -> BlockVector:
        """A vector of zeros for the same blocks, in the dtype of what is stored in this role."""
        return v.layout.zeros(like=self.like(v, role))

    def product(self, operator: LinearOperator[BlockVector], v: BlockVector, role: Role) -> BlockVector:
        """``operator`` times ``v``, whose factors are stored in this role: in their dtype, rounded to v's."""
        return InDtype(operator, self.backend.dtypes.of(role)) @ v
