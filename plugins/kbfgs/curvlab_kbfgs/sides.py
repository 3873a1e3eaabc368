"""The estimated inverse of one factor: matrices that BFGS changes, or the last pairs alone."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg import factorizations
from curvlab_kbfgs.blocks import Cut
from curvlab_kbfgs.pair import Pair, dot, double_damped


@dataclass
class MatrixInverse:
    """H as symmetric positive definite blocks, each with pairs of its own, changed in place."""

    H: Float[Tensor, "k b b"]
    cut: Cut = field(metadata={"transient": True})

    @classmethod
    def identity(cls, cut: Cut, like: Tensor) -> MatrixInverse:
        """H = I."""
        return cls(cut.eye(like), cut)

    def __matmul__(self, x: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
        return self.cut.rmatmul(x.mT, self.H).mT  # H is symmetric

    def rmatmul(self, x: Float[Tensor, "k d"], out: Tensor | None = None) -> Float[Tensor, "k d"]:
        """``x H``, into ``out`` if given."""
        image = self.cut.rmatmul(x, self.H)
        return image if out is None else out.copy_(image)

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product with ``columns`` vectors."""
        return 2.0 * self.cut.blocks * self.cut.size**2 * columns

    def along(self, x: Float[Tensor, " d"]) -> Float[Tensor, "k b"]:
        """H x, block by block."""
        return self.cut.products(self.H, self.cut.apart(x))

    def begin_(self, pair: Pair) -> None:
        """H ← γI, the geometric mean of the two scalings that a pair of dimension d allows: ``‖s‖ / ‖y‖``."""
        own = self._apart(pair)
        self.H.copy_(self.cut.eye(self.H) * own.scale[:, None, None])

    def damped(self, pair: Pair, least: float, damping: float, *, relative: bool) -> Pair:
        """A pair of vectors of dimension d as one for each block, double-damped."""
        cut, H = self.cut, self.H
        return double_damped(
            lambda y: cut.products(H, y), self._apart(pair), least, damping, relative=relative
        )

    def rescale_(self, pair: Pair) -> None:
        """γI ← ``sᵀs / sᵀy`` I, where the pair is admissible, before the first one is learned.

        Directions of which no pair tells then count as curved as s, which most are less.
        """
        gamma = dot(pair.s, pair.s) / dot(pair.s, pair.y)
        found = self.cut.eye(self.H) * gamma[:, None, None]
        self.H.copy_(torch.where(pair.admissible[:, None, None], found, self.H))

    def _apart(self, pair: Pair) -> Pair:
        return Pair(self.cut.apart(pair.s), self.cut.apart(pair.y))

    def learn_(self, pair: Pair) -> None:
        """H ← (I − ρsyᵀ) H (I − ρysᵀ) + ρssᵀ, ρ = 1/sᵀy: then H y = s.  Not where not admissible.

        Costs 6·b² flops a block, and no transfer to the host.
        """
        ok = pair.admissible
        pair = pair.normalized().where(ok)
        s, y = pair.s, pair.y
        one = torch.ones_like(s[:, 0])
        rho = torch.where(ok, 1 / torch.where(ok, dot(s, y), one), 0 * one).unsqueeze(-1)
        u = self.cut.products(self.H, y)
        w = s * (0.5 * rho * (1 + rho * dot(y, u).unsqueeze(-1))) - rho * u
        self.H.baddbmm_(torch.stack([s, w], 2), torch.stack([w, s], 1))


@dataclass
class LimitedInverse:
    """H as what BFGS makes of the last m pairs from γI, γ = sᵀs / sᵀy of the newest.

    Rows that hold no pair yet are zero, and come first.  ``R`` is the upper triangle of ``S Yᵀ``, with ones
    on the diagonal for those rows, wider than the pairs.  Costs 8·m·d flops a vector.
    """

    S: Float[Tensor, "m d"]
    Y: Float[Tensor, "m d"]
    R: Float[Tensor, "m m"]
    gamma: Float[Tensor, ""]

    @classmethod
    def identity(cls, d: int, memory: int, like: Tensor) -> LimitedInverse:
        """H = I, with room for ``memory`` pairs."""
        R = torch.eye(memory, dtype=torch.float64, device=like.device)
        return cls(like.new_zeros(memory, d), like.new_zeros(memory, d), R, like.new_ones(()))

    def __matmul__(self, x: Float[Tensor, "d k"]) -> Float[Tensor, "d k"]:
        a = factorizations.solve_triangular(self.R, (self.S @ x).to(self.R.dtype), upper=True)
        z = torch.addmm(x, self.Y.mT, a.to(x.dtype), alpha=-1.0).mul_(self.gamma)
        right = self.R.diagonal().unsqueeze(1) * a - (self.Y @ z).to(self.R.dtype)
        b = factorizations.solve_triangular(self.R.mT, right, upper=False)
        return z.addmm_(self.S.mT, b.to(x.dtype))

    def rmatmul(self, x: Float[Tensor, "k d"], out: Tensor | None = None) -> Float[Tensor, "k d"]:
        """``x H``, into ``out`` if given."""
        image = (self @ x.mT).mT
        return image if out is None else out.copy_(image)

    def flops(self, columns: int) -> float:
        """Multiply-adds, counted two each, of a product with ``columns`` vectors."""
        m, d = self.S.shape
        return (8.0 * m * d + 2.0 * m * m) * columns

    def damped(self, pair: Pair, least: float, damping: float, *, relative: bool) -> Pair:
        """The pair, double-damped."""
        return double_damped(
            lambda y: (self @ y.unsqueeze(1)).squeeze(1), pair, least, damping, relative=relative
        )

    def begin_(self, pair: Pair) -> None:
        """H ← γI, ``γ = ‖s‖ / ‖y‖``."""
        self.gamma.copy_(pair.scale)

    def rescale_(self, pair: Pair) -> None:
        """Nothing: γ follows the newest pair."""

    def learn_(self, pair: Pair) -> None:
        """The pair in place of the oldest, if it is admissible.  No transfer to the host."""
        ok, pair = pair.admissible, pair.normalized()
        s, y = pair.s, pair.y
        S, Y, R = torch.empty_like(self.S), torch.empty_like(self.Y), torch.zeros_like(self.R)
        for rows, kept, new in ((S, self.S, s), (Y, self.Y, y)):
            rows[:-1], rows[-1] = kept[1:], new
        R[:-1, :-1] = self.R[1:, 1:]
        R[:, -1] = (S @ y).to(R.dtype)
        for mine, other in ((self.S, S), (self.Y, Y), (self.R, R), (self.gamma, dot(s, s) / dot(s, y))):
            mine.copy_(torch.where(ok, other, mine))


Side = MatrixInverse | LimitedInverse
