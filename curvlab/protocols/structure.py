"""Structures: which pattern a square factor has.

Two nouns.  A *family* is the part: the pattern and its settings, a frozen dataclass.  A *member*
is the tensors.  One rule serves every family, symmetric or not: the projection of a symmetric S is
the member whose *symmetric part* is nearest,

    Π(S) = argmin_Z ‖½ (Z + Zᵀ) − S‖_F .

A family owes ``project`` and a member ``dense``; the rest has a dense fallback that warns with the
name of the method worth writing.  Two capabilities say what a family is good for: ``Gram`` holds
symmetric PSD factors (KFAC, Shampoo), ``Group`` is closed under products (SINGD).
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import ClassVar, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import CapabilityError, Fault, UnsupportedEvidence
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.kronecker import Factor, Kronecker
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.backend import Backend

M = TypeVar("M", bound="Structure")


class NaiveFallback(UserWarning):
    """A structure works through a dense matrix; the message names the method worth writing."""


class Structure(ABC):
    """A member of a family: a square matrix of dimension ``d``, held in few tensors."""

    family: Family  #: the pattern it is a member of

    @property
    @abstractmethod
    def d(self) -> int:
        """Dimension."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "d d"]:
        """The matrix."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by name: what is checkpointed and counted."""

    def __matmul__(self, x: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
        """``M x``."""
        _naive(self, "__matmul__")
        return self.dense() @ x

    def rmatmul(self, x: Float[Tensor, "k d"], out: Tensor | None = None) -> Float[Tensor, "k d"]:
        """``x M``, into ``out`` if given."""
        _naive(self, "rmatmul")
        return torch.matmul(x, self.dense(), out=out)

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product with ``columns`` vectors."""
        return 2.0 * self.d * self.d * columns

    def combine_(self: M, a: float, other: M, b: float) -> M:
        """self ← a · self + b · other, tensor by tensor (members of a family are a vector space)."""
        theirs = other.tensors()
        for name, mine in self.tensors().items():
            mine.mul_(a).add_(theirs[name], alpha=b)
        return self

    def mean_diagonal(self) -> Float[Tensor, ""]:
        """tr(M)/d."""
        _naive(self, "mean_diagonal")
        return self.dense().diagonal().mean()


class Family(ABC):
    """A pattern and its settings."""

    @abstractmethod
    def project(self, S: Float[Tensor, "d d"]) -> Structure:
        """The member whose symmetric part is nearest to the symmetric matrix S."""

    def zeros(self, d: int, *, like: Tensor) -> Structure:
        """The zero member of dimension d."""
        _naive(self, "zeros")
        return self.project(like.new_zeros(d, d))

    def eye(self, d: int, *, like: Tensor) -> Structure:
        """The identity of dimension d."""
        _naive(self, "eye")
        return self.project(torch.eye(d, dtype=like.dtype, device=like.device))

    @abstractmethod
    def scalars(self, d: int) -> int:
        """How many scalars a member of dimension d stores."""


class Gram(ABC):
    """Capability: members that are symmetric and PSD, and can be inverted and diagonalised."""

    #: whether eigenvectors differ from the identity (false for diagonal members)
    rotates: ClassVar[bool] = True

    @abstractmethod
    def average_(
        self, M: Structure, keep: float, X: Float[Tensor, "n d"], weight: float, backend: Backend
    ) -> None:
        """M ← keep · M + Π(weight · XᵀX), without a dense Gram where the pattern allows."""

    @abstractmethod
    def inverse(self, M: Structure, shift: Tensor | float, backend: Backend) -> Factor:
        """``(M + shift·I)⁻¹``; raises ``NotPositiveDefinite``."""

    @abstractmethod
    def eigh(self, M: Structure, backend: Backend) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"] | None]:
        """Eigenvalues (clamped at zero) and eigenvectors; ``None`` stands for the identity."""


class Group(ABC):
    """Capability: members closed under products, the identity among them."""

    @abstractmethod
    def congruence(self, K: Structure, X: Float[Tensor, "n d"]) -> Structure:
        """Π(Kᵀ XᵀX K)."""


def as_gram(family: Family, part: str) -> Gram:
    """The family as a ``Gram``; raises ``CapabilityError`` naming ``part`` if it is none."""
    if isinstance(family, Gram):
        return family
    raise CapabilityError(
        Fault(
            f"{part} needs a structure that is a Gram (symmetric, positive semi-definite), "
            f"and {type(family).__name__} is not one",
            hint='use a Gram family such as "dense" or "diagonal"',
        )
    )


def kronecker_blocks(C: LinearOperator[BlockVector], part: str) -> dict[str, Kronecker]:
    """The blocks of a block-diagonal Kronecker operator whose sides are Gram structures.

    Raises ``UnsupportedEvidence`` or ``CapabilityError``, naming ``part``, for anything else.
    """
    blocks = C.blocks if isinstance(C, BlockDiagonal) else {"": C}
    found: dict[str, Kronecker] = {}
    for name, block in blocks.items():
        if not isinstance(block, Kronecker):
            raise UnsupportedEvidence(
                part,
                name,
                expected="curvature B ⊗ A",
                got=type(block).__name__,
                hint='use "iterative", which needs products only',
            )
        for side in (block.B, block.A):
            if isinstance(side, Structure):
                as_gram(side.family, part)
        found[name] = block
    return found


def _naive(thing: object, method: str) -> None:
    warnings.warn(
        f"{type(thing).__name__}.{method} falls back to a dense matrix; write it to be fast",
        NaiveFallback,
        stacklevel=3,
    )
