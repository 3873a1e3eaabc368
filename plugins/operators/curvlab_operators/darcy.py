"""Darcy's equation, ``−∇·(a ∇u) = f`` on the unit square with u = 0 on its sides, by finite volumes.

``grid × grid`` equal cells, a and u constant in each.  The flux through a face follows from the harmonic mean
of a in the two cells, which is exact in one dimension where a jumps at the face; on a side of the square,
from a over half a cell.  Errors fall as h² for smooth a.  All examples are solved at once, in
the dtype of f, by conjugate gradients.  The preconditioner is the inverse of the same operator for a = 1, by
eigenvectors of its two one-dimensional parts (Lynch, Rice and Thomas 1964): the number of steps depends on
the contrast of a, not on the grid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import DataError

#: relative residual at which an example is solved
TOLERANCE = 1e-10

#: steps of conjugate gradients; a contrast of 1,000 takes a tenth of it
MOST = 1000


def solve(a: Float[Tensor, "n g g"], f: Float[Tensor, "n g g"]) -> Float[Tensor, "n g g"]:
    """u in every cell; raises ``DataError`` where a is not positive, or too rough to be solved for."""
    if not bool((a > 0).all() & a.isfinite().all()):
        raise DataError(f"Darcy's equation needs positive a; the smallest is {float(a.min()):g}")
    faces, inverse = _Faces.of(a), _Laplacian.of(a)
    u, r = torch.zeros_like(f), f.clone()
    z = inverse(r)
    p, rz, target = z, _dot(r, z), TOLERANCE * _dot(f, f).sqrt()
    for _ in range(MOST):
        if bool((_dot(r, r).sqrt() <= target).all()):
            return u
        Ap = faces.divergence(p)
        curvature = _dot(p, Ap)
        step = torch.where(curvature > 0, rz / curvature, 0.0)
        u = u + step * p
        r = r - step * Ap
        z = inverse(r)
        before, rz = rz, _dot(r, z)
        p = z + torch.where(before > 0, rz / before, 0.0) * p
    left = float((_dot(r, r).sqrt() / target).max()) * TOLERANCE
    raise DataError(
        f"Darcy's equation: a relative residual of {left:.1e} after {MOST} steps of conjugate gradients;"
        f" expected {TOLERANCE:g}. Use a smaller contrast"
    )


@dataclass(frozen=True)
class _Faces:
    """Fluxes per difference of u over h², through faces inside and on the four sides."""

    across_x: Float[Tensor, "n g-1 g"]
    across_y: Float[Tensor, "n g g-1"]
    sides: Float[Tensor, "n g g"]  #: on the diagonal, zero in cells that touch no side

    @classmethod
    def of(cls, a: Float[Tensor, "n g g"]) -> _Faces:
        per = float(a.shape[-1]) ** 2
        left, right, lower, upper = a[:, :-1], a[:, 1:], a[:, :, :-1], a[:, :, 1:]
        sides = torch.zeros_like(a)
        for edge in (sides[:, 0], sides[:, -1], sides[:, :, 0], sides[:, :, -1]):
            edge += 2.0 * per
        return cls(
            per * 2 * left * right / (left + right), per * 2 * lower * upper / (lower + upper), sides * a
        )

    def divergence(self, u: Float[Tensor, "n g g"]) -> Float[Tensor, "n g g"]:
        """``−∇·(a ∇u)``."""
        found = self.sides * u
        flux = self.across_x * (u[:, 1:] - u[:, :-1])
        found[:, :-1] -= flux
        found[:, 1:] += flux
        flux = self.across_y * (u[:, :, 1:] - u[:, :, :-1])
        found[:, :, :-1] -= flux
        found[:, :, 1:] += flux
        return found


@dataclass(frozen=True)
class _Laplacian:
    """The inverse of the operator for a = 1: sines along each axis diagonalize it."""

    vectors: Float[Tensor, "g g"]
    eigenvalues: Float[Tensor, "g g"]

    @classmethod
    def of(cls, like: Float[Tensor, "n g g"]) -> _Laplacian:
        g = like.shape[-1]
        k = torch.arange(1, g + 1, dtype=like.dtype, device=like.device)
        vectors = (2 / g) ** 0.5 * torch.sin(math.pi / g * (k - 0.5)[:, None] * k)
        vectors[:, -1] *= 0.5**0.5
        values = (2.0 * g * torch.sin(math.pi / (2 * g) * k)).square()
        return cls(vectors, values[:, None] + values)

    def __call__(self, r: Float[Tensor, "n g g"]) -> Float[Tensor, "n g g"]:
        V = self.vectors
        return V @ ((V.mT @ r @ V) / self.eigenvalues) @ V.mT


def _dot(u: Float[Tensor, "n g g"], v: Float[Tensor, "n g g"]) -> Float[Tensor, "n 1 1"]:
    return (u * v).sum((1, 2), keepdim=True)
