"""Convolutions of rows with one sequence: by Fourier transforms, and directly in blocks.

Both are *prepared*: what depends on the sequence alone is computed once, and serves any number of
products.  ``causal`` is the product ``x U`` with the upper triangular Toeplitz matrix
``U[i, j] = t[j − i]``, ``anticausal`` the product ``x Uᵀ``; neither matrix is formed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import torch
from jaxtyping import Complex, Float
from torch import Tensor
from torch.nn.functional import pad

from curvlab_structures.products import add_product_, set_product_

#: columns that are multiplied at once directly: wider ones waste more on zeros, narrower ones are slower
WIDTH = 64

#: how many numbers are transformed at once on a processor: half a megabyte or one
PORTION = 2**17


class Convolution(Protocol):
    """Products of rows with one triangular Toeplitz matrix and with its transpose."""

    def causal(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        """``y_j = Σ_{i ≤ j} t_{j−i} x_i``, into ``out`` if given."""

    def anticausal(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        """``y_j = Σ_{i ≥ j} t_{i−j} x_i``, into ``out`` if given."""

    def autocorrelation(self, x: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b d"]:
        """``r_l = Σ_i x_i x_{i+l}`` summed over the rows: the sums along the diagonals of ``xᵀx``.

        Rows of 16 bits are summed in float32.
        """

    @staticmethod
    def flops(d: int, rows: int) -> float:
        """The flops of ``causal``, and of ``anticausal``."""


@dataclass(frozen=True)
class Spectral:
    """By real Fourier transforms of length N ≥ 2d − 1, so that nothing wraps round: O(d log d) a row.

    Rows of 16 bits are transformed in float32.
    """

    spectrum: Complex[Tensor, "*b 1 f"]
    d: int

    @staticmethod
    def of(t: Float[Tensor, "*b d"]) -> Spectral:
        """From the sequence t."""
        d = t.shape[-1]
        return Spectral(torch.fft.rfft(wide(t).unsqueeze(-2), n=fast_length(2 * d - 1)), d)

    @property
    def length(self) -> int:
        """N, which is even."""
        return 2 * self.spectrum.shape[-1] - 2

    def causal(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        return self._filtered(x, self.spectrum, out)

    def anticausal(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        return self._filtered(x, self.spectrum.conj(), out)

    def autocorrelation(self, x: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b d"]:
        power: Tensor | float = 0.0
        for rows in self._portions(x):
            X = torch.view_as_real(torch.fft.rfft(wide(rows), n=self.length))
            power = power + X.square().sum(-3).sum(-1)  # over the rows first: that runs along the memory
        correlation: Tensor = torch.fft.irfft(power, n=self.length)
        return correlation[..., : self.d]

    @staticmethod
    def flops(d: int, rows: int) -> float:
        N = fast_length(2 * d - 1)  # 5/2 N log N there, as much back, and N/2 + 1 complex products
        return rows * (5.0 * N * math.log2(N) + 6.0 * (N // 2 + 1))

    def _filtered(
        self, x: Float[Tensor, "*b n d"], spectrum: Complex[Tensor, "*b 1 f"], out: Tensor | None
    ) -> Float[Tensor, "*b n d"]:
        y = x.new_empty(x.shape) if out is None else out
        for theirs, mine in zip(self._portions(x), self._portions(y), strict=True):
            X = torch.fft.rfft(wide(theirs), n=self.length).mul_(spectrum)
            mine.copy_(torch.fft.irfft(X, n=self.length)[..., : self.d])
        return y

    def _portions(self, x: Float[Tensor, "*b n d"]) -> tuple[Tensor, ...]:
        """The rows, on a processor in portions whose transforms stay in its cache."""
        rows = max(1, PORTION // (self.length * math.prod(x.shape[:-2])))
        if x.device.type != "cpu" or x.shape[-2] <= rows:
            return (x,)
        return torch.split(x, rows, -2)


@dataclass(frozen=True)
class Blocked:
    """By matrix products with the first w columns of the lower triangular matrix: d·(d + w) flops a row.

    Any other w columns of it, and of its transpose, are a part of these, shifted or turned by 180°, so they
    alone are formed; zeros beyond the triangle are left out by whole blocks.
    """

    column: Float[Tensor, "*b d w"]  #: ``column[i, j] = t[i − j]``, zero above the diagonal

    @staticmethod
    def of(t: Float[Tensor, "*b d"]) -> Blocked:
        """From the sequence t; w is about a quarter of its length at most."""
        w = _width(t.shape[-1])
        return Blocked(pad(t, (w - 1, 0)).unfold(-1, w, 1).flip(-1))

    def causal(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        y = x.new_empty(x.shape) if out is None else out
        turned, (d, w) = self.column.flip(-2, -1), self.column.shape[-2:]
        for s, e in _blocks(d):  # t[j − i] for i < e, s ≤ j < e
            set_product_(y[..., s:e], x[..., :e], turned[..., d - e :, w - (e - s) :])
        return y

    def anticausal(self, x: Float[Tensor, "*b n d"], out: Tensor | None = None) -> Float[Tensor, "*b n d"]:
        y, d = x.new_empty(x.shape) if out is None else out, x.shape[-1]
        for s, e in _blocks(d):  # t[i − j] for i ≥ s, s ≤ j < e
            set_product_(y[..., s:e], x[..., s:], self.column[..., : d - s, : e - s])
        return y

    def autocorrelation(self, x: Float[Tensor, "*b n d"]) -> Float[Tensor, "*b d"]:
        x, (d, w) = wide(x), self.column.shape[-2:]
        batch = x.shape[:-2]
        # two views of one memory: pairs[a, b] = Σ x_{s+a} x_{s+b}, lags[a, l] = pairs[a, a + l]
        memory = x.new_zeros(*batch, w * (d + w))
        pairs = memory[..., : w * (d + w - 1)].view(*batch, w, d + w - 1)
        lags = memory.view(*batch, w, d + w)[..., :d]
        for s, e in _blocks(d):
            add_product_(pairs[..., : e - s, : d - s], x[..., s:e].mT, x[..., s:])
        return lags.sum(-2)

    @staticmethod
    def flops(d: int, rows: int) -> float:
        return 2.0 * rows * sum(e * (e - s) for s, e in _blocks(d))


@lru_cache(maxsize=1024)
def fast_length(least: int) -> int:
    """The smallest multiple of 8 that is not below ``least`` and has no prime factor above 5."""
    length = -(-least // 8) * 8  # transforms of odd lengths take several times as long
    while not _smooth(length):
        length += 8
    return length


def wide(x: Tensor) -> Tensor:
    """In float32 if it has 16 bits: few devices transform those, and long sums of them lose digits."""
    return x.float() if x.element_size() < 4 else x


def _width(d: int) -> int:
    """How many columns are multiplied at once; so few that they are no d × d matrix."""
    return min(WIDTH, -(-d // 4))


def _blocks(d: int) -> list[tuple[int, int]]:
    """Where the blocks of columns start and stop."""
    w = _width(d)
    return [(s, min(s + w, d)) for s in range(0, d, w)]


def _smooth(n: int) -> bool:
    for p in (2, 3, 5):
        while n % p == 0:
            n //= p
    return n == 1
