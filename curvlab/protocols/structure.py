"""Structures: which pattern a square factor has.

Two nouns.  A *family* is the part: the pattern and its settings, a frozen dataclass.  A *member*
is the tensors.  One rule serves every family, symmetric or not: the projection of a symmetric S is
the member whose *symmetric part* is nearest,

    Π(S) = argmin_Z ‖½ (Z + Zᵀ) − S‖_F .

A family owes ``project`` and a member ``dense``; the rest has a dense fallback that warns with the
name of the method worth writing.  Two capabilities say what a family is good for: ``Gram`` holds
symmetric PSD factors (KFAC, Shampoo), ``Group`` is closed under products (SINGD).

Members may be *stacked*: leading axes ``*b`` of every tensor are matrices of one dimension side by
side, and every operation works on all of them at once.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any, ClassVar, Generic

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import TypeVar

from curvlab.errors import CapabilityError, Fault, UnsupportedEvidence
from curvlab.linalg.compose import BlockDiagonal
from curvlab.linalg.factors import Spectral, Squared, powers
from curvlab.linalg.kronecker import Factor, Kronecker
from curvlab.linalg.operator import LinearOperator
from curvlab.linalg.power_iteration import probes, unit
from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.backend import Backend

M = TypeVar("M", bound="Structure")
#: the class of a family's members
Member = TypeVar("Member", bound="Structure", default="Structure")


class NaiveFallback(UserWarning):
    """A structure works through a dense matrix; the message names the method worth writing."""


class Structure(ABC):
    """A member of a family: a square matrix of dimension ``d``, held in few tensors.

    A frozen dataclass whose fields of type ``Tensor`` are what it stores.
    """

    family: Family  #: the pattern it is a member of

    @property
    @abstractmethod
    def d(self) -> int:
        """Dimension."""

    @abstractmethod
    def dense(self) -> Float[Tensor, "*b d d"]:
        """The matrix."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by field name: what is checkpointed and counted."""

    def __matmul__(self, x: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        """``M x``."""
        naive(self, "__matmul__")
        return self.dense() @ x

    def rmatmul(self, x: Float[Tensor, "*b k d"], out: Tensor | None = None) -> Float[Tensor, "*b k d"]:
        """``x M``, into ``out`` if given."""
        naive(self, "rmatmul")
        return torch.matmul(x, self.dense(), out=out)

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product of one matrix with ``columns`` vectors."""
        return 2.0 * self.d * self.d * columns

    @property
    def like(self) -> Tensor:
        """A tensor of its dtype and device: one of its own."""
        return next(iter(self.tensors().values()))

    def combine_(self: M, a: float | Tensor, other: M, b: float | Tensor) -> M:
        """self ← a · self + b · other, tensor by tensor (members of a family are a vector space).

        A tensor ``a`` or ``b`` holds one number per stacked matrix.
        """
        if not (isinstance(a, float) and a == 1.0):
            self.scale_(a)
        theirs = other.tensors()
        for name, mine in self.tensors().items():
            if isinstance(b, Tensor):
                mine.addcmul_(theirs[name], _per_matrix(b, mine))
            else:
                mine.add_(theirs[name], alpha=b)
        return self

    def scale_(self: M, c: float | Tensor) -> M:
        """self ← c · self."""
        for mine in self.tensors().values():
            mine.mul_(_per_matrix(c, mine))
        return self

    def shift_(self: M, c: float) -> M:
        """self ← self + c · I."""
        return self.combine_(1.0, self.family.eye(self.d, like=self.like, batch=self.batch), c)  # type: ignore[arg-type]

    def mean_diagonal(self) -> Float[Tensor, "*b"]:
        """tr(M)/d."""
        naive(self, "mean_diagonal")
        return self.dense().diagonal(dim1=-2, dim2=-1).mean(-1)

    def norm(self) -> Float[Tensor, "*b"]:
        """Frobenius norm of the matrix."""
        naive(self, "norm")
        return self.dense().square().sum((-2, -1)).sqrt()

    def spectral_norm(self) -> Float[Tensor, "*b"]:
        """Largest singular value, from below: one step of power iteration on a few fixed vectors."""
        w = (self @ probes(self.d, self.like).expand(*self.batch, self.d, -1)).mT
        found: Tensor = torch.linalg.vector_norm(self.rmatmul(unit(w)), dim=-1).amax(-1)
        return found

    def laid_out(self: M) -> M:
        """The same matrix, in the form that serves several products in a row; right until it changes."""
        return self

    @property
    def batch(self) -> tuple[int, ...]:
        """The leading axes."""
        naive(self, "batch")
        return tuple(self.dense().shape[:-2])

    def part(self: M, k: int) -> M:
        """The k-th of the stacked matrices: views, not copies."""
        return replace(self, **{name: t[k] for name, t in self.tensors().items()})  # type: ignore[type-var]


class Family(ABC):
    """A pattern and its settings."""

    #: whether members of one dimension are a vector space (then projections are linear, and members combine)
    linear: ClassVar[bool] = True
    #: whether ``average_`` and ``congruence`` take one-hot rows as ``Lookups``, beside dense rows
    averages_lookups: ClassVar[bool] = False

    @abstractmethod
    def project(self, S: Float[Tensor, "*b d d"]) -> Structure:
        """The member whose symmetric part is nearest to the symmetric matrix S."""

    def zeros(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> Structure:
        """The zero member of dimension d."""
        naive(self, "zeros")
        return self.project(like.new_zeros(*batch, d, d))

    def eye(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> Structure:
        """The identity of dimension d."""
        naive(self, "eye")
        return self.project(torch.eye(d, dtype=like.dtype, device=like.device).expand(*batch, d, d))

    @abstractmethod
    def scalars(self, d: int) -> int:
        """How many scalars a member of dimension d stores."""

    def at(self, d: int) -> Family:
        """The family that stands for this one at dimension d: itself, unless it is a choice among others."""
        return self

    def options(self) -> tuple[Family, ...]:
        """Every family that ``at`` may choose."""
        return (self,)


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

    def power(self, M: Structure, p: float, shift: Tensor | float, backend: Backend) -> Factor:
        """``(M + shift·I)^p``; raises ``NotPositiveDefinite`` if p is negative and an eigenvalue ≤ 0.

        Through ``eigh``, unless a family knows better: products with it then cost ``4·d²`` flops a vector.
        """
        values, vectors = self.eigh(M, backend)
        return Spectral(powers(values + shift, p), vectors)


class Group(ABC, Generic[Member]):
    """Capability: members closed under products, the identity among them.

    Owes ``member``; the rest has a dense fallback that warns.  ``Group[ArrowMatrix]`` says the class of
    the members, so that a method of a subclass may take and return ``ArrowMatrix``; ``Group`` alone is
    that of any ``Structure``.
    """

    @abstractmethod
    def member(self, A: Float[Tensor, "*b d d"]) -> Member:
        """The member equal to A, a matrix that has the pattern; copied."""

    def congruence(self, K: Member, X: Float[Tensor, "*b n d"]) -> Structure:
        """Π(Kᵀ XᵀX K)."""
        naive(self, "congruence")
        S = K.rmatmul(X)
        return K.family.project(S.mT @ S)

    def square(self, K: Member) -> Structure:
        """Π(Kᵀ K)."""
        naive(self, "square")
        A = K.dense()
        return K.family.project(A.mT @ A)

    def product(self, K: Member, M: Member) -> Structure:
        """K M."""
        naive(self, "product")
        return self.member(K.dense() @ M.dense())

    def gramian(self, K: Member) -> Factor:
        """K Kᵀ as products with it; a member itself where that is both possible and cheaper."""
        return Squared(K)


def as_gram(family: Family, part: str) -> Gram:
    """The family as a ``Gram``; raises ``CapabilityError``, naming ``part``, if it or an option is none."""
    _require(family, part, Gram, "symmetric, positive semi-definite")
    assert isinstance(family, Gram)
    return family


def as_group(family: Family, part: str) -> Group:
    """The family as a ``Group``; raises ``CapabilityError``, naming ``part``, if it or an option is none."""
    _require(family, part, Group, "closed under products")
    assert isinstance(family, Group)
    return family


def _require(family: Family, part: str, wanted: type, meaning: str) -> None:
    """Raise ``CapabilityError`` if a family, or one of its options, is no ``wanted``."""
    name = wanted.__name__
    for option in (family, *family.options()):
        if not isinstance(option, wanted):
            raise CapabilityError(
                Fault(
                    f"{part} needs a structure that is a {name} ({meaning}), "
                    f"and {type(option).__name__} is not one",
                    hint=f'use a {name} family, such as "dense" or "diagonal"',
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


def _per_matrix(c: Any, t: Tensor) -> Any:
    """A coefficient per stacked matrix, shaped to multiply one of its tensors."""
    if not isinstance(c, Tensor):
        return c
    return c.reshape(c.shape + (1,) * (t.dim() - c.dim()))


def naive(thing: object, method: str) -> None:
    """Warn that ``method`` of ``thing`` makes a dense matrix, since its class does not write it."""
    warnings.warn(
        f"{type(thing).__name__}.{method} falls back to a dense matrix, which is slow; override it",
        NaiveFallback,
        stacklevel=3,
    )
