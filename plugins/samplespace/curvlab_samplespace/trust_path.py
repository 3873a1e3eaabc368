"""The damped solutions of a least-squares problem, from its singular values."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.protocols.path import DampedPath
from curvlab_samplespace.solvers import Spectral


@dataclass
class SpectralPath(DampedPath):
    """``x(λ) = W s β / (s² + λ)``; ``‖x(λ)‖ = radius`` is solved by Newton's method on ``1/‖x‖``.

    Conn, Gould and Toint 2000, *Trust-Region Methods*, §7.3.1.
    """

    spectrum: Spectral
    beta: Float[Tensor, " k"]

    def __post_init__(self) -> None:
        used = self.spectrum.squares > self.spectrum.least
        self._squares = self.spectrum.squares[used]
        self._beta = self.beta[used]
        self._known: tuple[BlockVector, Tensor] | None = None
        self.least = 0.0

    @property
    def longest(self) -> float:
        return self._length(0.0)

    def damping(self, radius: float) -> float:
        if radius >= self.longest or not len(self._squares):
            return 0.0
        # ‖x‖ lies between that of the smallest and of the largest singular value alone
        low, high = 0.0, float((self._squares.sqrt() * self._beta).norm()) / radius
        damping = high
        for _ in range(100):
            d = self._squares + damping
            x = self._squares.sqrt() * self._beta / d
            length = float(x.norm())
            off = length / radius - 1.0
            if abs(off) < 1e-12:
                break
            low, high = (damping, high) if off > 0 else (low, damping)
            y = x / length if length > 0 else x
            slope = float((y * y / d).sum())
            step = damping + off / slope if slope > 0 else low
            damping = step if low < step < high else 0.5 * (low + high)
        return damping

    def at(self, damping: float) -> BlockVector:
        return self.spectrum.back(self.beta * self.spectrum.inverse(damping))

    def beside(self, v: BlockVector, share: float, damping: float) -> BlockVector:
        left = self.beta - share * self._image(v)
        return self.spectrum.back(left * self.spectrum.inverse(damping)).add_(v, share)

    def _image(self, v: BlockVector) -> Float[Tensor, " k"]:
        """``Uᵀ J v``; that of one v is kept."""
        if self._known is None or self._known[0] is not v:
            self._known = v, self.spectrum.image(v)
        return self._known[1]

    def predicted(self, damping: float) -> float:
        share = self._squares / (self._squares + damping)
        return -float((self._beta.square() * share * (1 - 0.5 * share)).sum())

    def _length(self, damping: float) -> float:
        return float((self._squares.sqrt() * self._beta / (self._squares + damping)).norm())
