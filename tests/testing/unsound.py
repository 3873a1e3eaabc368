"""Members of the sound family that store what they should not, or not what they should."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from curvlab.protocols.structure import Structure
from tests.testing.sound import Sound, SoundMatrix


@dataclass(frozen=True)
class WithSpare(SoundMatrix):
    """Stores a number that no entry depends on."""

    spare: Tensor = field(default_factory=lambda: torch.zeros(1))

    def tensors(self) -> dict[str, Tensor]:
        return {"matrix": self.matrix, "spare": self.spare}


@dataclass(frozen=True)
class Rooted(SoundMatrix):
    """Stores signed roots of the entries: no vector space."""

    def dense(self) -> Tensor:
        return self.matrix * self.matrix.abs()

    def __matmul__(self, x: Tensor) -> Tensor:
        return self.dense() @ x

    def rmatmul(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        return torch.matmul(x, self.dense(), out=out)

    def shift_(self, c: float) -> Any:
        self.matrix.copy_(rooted(self.dense() + c * torch.eye(self.d, dtype=self.matrix.dtype)))
        return self

    def mean_diagonal(self) -> Tensor:
        return self.dense().diagonal(dim1=-2, dim2=-1).mean(-1)

    def norm(self) -> Tensor:
        return torch.linalg.vector_norm(self.dense(), dim=(-2, -1))


def rooted(A: Tensor) -> Tensor:
    return A.sign() * A.abs().sqrt()


@dataclass(frozen=True)
class Projecting(Sound):
    """Congruences and squares by way of the projection."""

    def congruence(self, K: Structure, X: Tensor) -> Any:
        return self.project(Sound.congruence(self, K, X).matrix)

    def square(self, K: Structure) -> Any:
        return self.project(Sound.square(self, K).matrix)


@dataclass(frozen=True)
class Remembering(SoundMatrix):
    """Keeps a copy for products from the right, which updates do not reach."""

    kept: dict[str, Tensor] = field(
        init=False, default_factory=dict, metadata={"transient": True}, compare=False
    )

    def rmatmul(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        if "matrix" not in self.kept:
            self.kept["matrix"] = self.matrix.clone()
        return torch.matmul(x, self.kept["matrix"], out=out)


@dataclass(frozen=True)
class Unsaved(SoundMatrix):
    """What it stores is marked as of one step only."""

    matrix: Tensor = field(metadata={"transient": True})
