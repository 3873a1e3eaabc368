"""Triangular Toeplitz matrices: one number along each diagonal."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.linalg.kronecker import Factor
from curvlab.protocols.structure import Family, Group, Structure
from curvlab_structures.convolution import Blocked, Convolution, Spectral, wide

Algorithm = Literal["auto", "fft", "direct"]

#: the dimension from which Fourier transforms take less time than direct products, 128 rows on one core
FFT_FROM = {torch.float64: 192, torch.float32: 320}
#: the same for 16 bits, which multiply faster and have to be widened before they are transformed
FFT_FROM_HALF = 512


@dataclass(frozen=True)
class ToeplitzMatrix(Structure):
    """``M[i, j] = t[|i − j|]`` on the diagonal and on one side of it, zero on the other."""

    coefficients: Float[Tensor, "*b d"]
    family: Toeplitz

    @property
    def d(self) -> int:
        return self.coefficients.shape[-1]

    @property
    def batch(self) -> tuple[int, ...]:
        return tuple(self.coefficients.shape[:-1])

    def dense(self) -> Float[Tensor, "*b d d"]:
        i = torch.arange(self.d, device=self.coefficients.device)
        lag = i - i.unsqueeze(-1) if self.family.upper else i.unsqueeze(-1) - i
        return self.coefficients[..., lag.clamp(min=0)].masked_fill_(lag < 0, 0.0)

    def tensors(self) -> dict[str, Tensor]:
        return {"coefficients": self.coefficients}

    def __matmul__(self, x: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        c = self.convolution()
        return _on_columns(c.anticausal if self.family.upper else c.causal, x)

    def rmatmul(self, x: Float[Tensor, "*b k d"], out: Tensor | None = None) -> Float[Tensor, "*b k d"]:
        c = self.convolution()
        return c.causal(x, out) if self.family.upper else c.anticausal(x, out)

    def flops(self, columns: int) -> float:
        return self.family.flops(self.coefficients, columns)

    def shift_(self, c: float) -> ToeplitzMatrix:
        self.coefficients[..., 0].add_(c)
        return self

    def mean_diagonal(self) -> Float[Tensor, "*b"]:
        return self.coefficients[..., 0].clone()

    def norm(self) -> Float[Tensor, "*b"]:
        t = wide(self.coefficients)
        norm: Tensor = torch.linalg.vector_norm(_lengths(t).sqrt() * t, dim=-1)
        return norm.to(self.coefficients.dtype)

    def convolution(self) -> Convolution:
        """Products with the matrix, prepared."""
        return self.family.convolution(self.coefficients)


@dataclass(frozen=True)
class ToeplitzGramian:
    """``K Kᵀ`` of a triangular Toeplitz K, which is no Toeplitz matrix: two convolutions, prepared once."""

    K: ToeplitzMatrix
    convolution: Convolution

    def __matmul__(self, x: Float[Tensor, "*b d k"]) -> Float[Tensor, "*b d k"]:
        return _on_columns(self.rmatmul, x)

    def rmatmul(self, x: Float[Tensor, "*b k d"], out: Tensor | None = None) -> Float[Tensor, "*b k d"]:
        c = self.convolution
        if self.K.family.upper:
            return c.anticausal(c.causal(x), out)
        return c.causal(c.anticausal(x), out)

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product with ``columns`` vectors."""
        return 2.0 * self.K.flops(columns)


@dataclass(frozen=True)
class Toeplitz(Family, Group):
    """What both triangles have in common; see them."""

    algorithm: Algorithm = "auto"

    upper: ClassVar[bool]

    def __post_init__(self) -> None:
        if self.algorithm not in get_args(Algorithm):
            expected = ", ".join(f'"{name}"' for name in get_args(Algorithm))
            raise ConfigError(
                Fault(f"algorithm = {self.algorithm!r} must be one of {expected}", path="algorithm")
            )

    def project(self, S: Float[Tensor, "*b d d"]) -> ToeplitzMatrix:
        batch, d = S.shape[:-2], S.shape[-1]
        memory = S.new_zeros(*batch, d * 2 * d)
        # one memory, two views: S with d − 1 zeros beside it, and the same with each row one more to the left
        memory[..., : d * (2 * d - 1)].view(*batch, d, 2 * d - 1)[..., :d] = S
        return self._from_sums(memory.view(*batch, d, 2 * d)[..., :d].sum(-2), S)

    def zeros(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> ToeplitzMatrix:
        return ToeplitzMatrix(like.new_zeros(*batch, d), self)

    def eye(self, d: int, *, like: Tensor, batch: tuple[int, ...] = ()) -> ToeplitzMatrix:
        return self.zeros(d, like=like, batch=batch).shift_(1.0)

    def scalars(self, d: int) -> int:
        return d

    def member(self, A: Float[Tensor, "*b d d"]) -> ToeplitzMatrix:
        first = A[..., 0, :] if self.upper else A[..., :, 0]
        return ToeplitzMatrix(first.clone(memory_format=torch.contiguous_format), self)

    def congruence(self, K: Structure, X: Float[Tensor, "*b n d"]) -> ToeplitzMatrix:
        c = _of(K).convolution()
        S = c.causal(X) if self.upper else c.anticausal(X)
        return self._from_sums(c.autocorrelation(S), _of(K).coefficients)

    def square(self, K: Structure) -> ToeplitzMatrix:
        # the l-th diagonal of KᵀK adds up to Σ_a (d − l − a) t_a t_{a+l}: t against t with weights d − b
        t = wide(_of(K).coefficients)
        sums = self.convolution(t).anticausal((_lengths(t) * t).unsqueeze(-2)).squeeze(-2)
        return self._from_sums(sums, _of(K).coefficients)

    def product(self, K: Structure, M: Structure) -> ToeplitzMatrix:
        row = _of(M).coefficients.unsqueeze(-2)
        return ToeplitzMatrix(_of(K).convolution().causal(row).squeeze(-2), self)

    def gramian(self, K: Structure) -> Factor:
        return ToeplitzGramian(_of(K), _of(K).convolution())

    def convolution(self, t: Float[Tensor, "*b d"]) -> Convolution:
        """With the sequence t, by the algorithm that is set or the faster one."""
        return Spectral.of(t) if self._by_fft(t) else Blocked.of(t)

    def flops(self, t: Float[Tensor, "*b d"], rows: int) -> float:
        """The flops of a convolution of rows with t.

        At most those of a dense matrix, which transforms of a few numbers exceed: an order of products chosen
        by this is right all the same.
        """
        d = t.shape[-1]
        own = Spectral.flops(d, rows) if self._by_fft(t) else Blocked.flops(d, rows)
        return min(own, 2.0 * d * d * rows)

    def _by_fft(self, t: Float[Tensor, "*b d"]) -> bool:
        if self.algorithm == "auto":
            return t.shape[-1] >= FFT_FROM.get(t.dtype, FFT_FROM_HALF)
        return self.algorithm == "fft"

    def _from_sums(self, sums: Float[Tensor, "*b d"], like: Tensor) -> ToeplitzMatrix:
        """The projection of a symmetric matrix whose diagonals, from the main one up, have these sums."""
        means = sums / _lengths(sums)
        means[..., 1:].mul_(2.0)
        return ToeplitzMatrix(means.to(like.dtype), self)


@dataclass(frozen=True)
class UpperToeplitz(Toeplitz):
    """Π(S): t₀ the mean of S's diagonal, t_j twice the mean of its j-th; ``M[i, j] = t[j − i]`` for i ≤ j.

    d scalars.  A product with a vector costs about 5·N·log₂ N flops by Fourier transforms of a length N just
    above 2d, d·(d + 64) directly; ``algorithm`` chooses ("auto": by dimension and dtype).  A congruence of n
    rows costs as much as two products with them, a square or a product of members as one with a
    single row.  For indices whose order means something, such as pixels, times or channels of a filter bank.
    Source: arXiv 2312.05705.
    """

    upper = True


@dataclass(frozen=True)
class LowerToeplitz(Toeplitz):
    """Π(S): t₀ the mean of S's diagonal, t_j twice the mean of its j-th; ``M[i, j] = t[i − j]`` for i ≥ j.

    The transposes of ``upper-toeplitz``: the same storage and costs.
    """

    upper = False


def _of(M: Structure) -> ToeplitzMatrix:
    assert isinstance(M, ToeplitzMatrix)
    return M


def _lengths(t: Float[Tensor, "*b d"]) -> Float[Tensor, " d"]:
    """How many entries each diagonal has: d, d − 1, …, 1."""
    return torch.arange(t.shape[-1], 0, -1, dtype=t.dtype, device=t.device)


def _on_columns(
    rows: Callable[[Tensor, Tensor], Tensor], x: Float[Tensor, "*b d k"]
) -> Float[Tensor, "*b d k"]:
    """What a map of rows into given memory does to columns."""
    y = x.new_empty(x.shape)
    rows(x.mT, y.mT)
    return y
