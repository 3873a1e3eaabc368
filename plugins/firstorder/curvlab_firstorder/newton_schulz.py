"""Muon's preconditioner: the gradient's nearest semi-orthogonal matrix, by products alone."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.vectors import BlockVector
from curvlab.linalg.work import work_dtype
from curvlab.protocols.blocks import Block
from curvlab.protocols.bounds import Count, check_bounds
from curvlab.protocols.context import Context
from curvlab.protocols.evidence import Solve
from curvlab.protocols.preconditioner import Preconditioner

#: ``p(s) = a·s + b·s³ + c·s⁵``, the map of each singular value.  Its slope at 0 is large, so that small
#: singular values grow 3.4-fold an iteration, and it sends [0, 1] into about [0.7, 1.2] after five:
#: fast and rough, where the exact polynomial (15/8, −10/8, 3/8) would be slow (Jordan 2024)
COEFFICIENTS = (3.4445, -4.7750, 2.0315)

#: a matrix whose norm is below this is divided by this instead: zero stays zero
SMALLEST_NORM = 1e-30


@dataclass(frozen=True)
class NewtonSchulz(Preconditioner[None]):
    """``V ↦ max(1, o/i)^½ · U Wᵀ`` for a matrix block V = U S Wᵀ; the damping λ is not used.

    Every singular value is moved near 1 (into about [0.7, 1.2]) by ``iterations`` steps of
    ``X ← a X + (b (X Xᵀ) + c (X Xᵀ)²) X`` from X = V/‖V‖_F.  The result does not depend on the scale of
    V; the factor keeps the root mean square of a unit's change alike for tall and wide matrices.
    Steepest descent under the spectral norm.  Without state.  An iteration costs
    4·m²·(o + i − m) + 2·m³ flops with m = min(o, i).  Computed in float32, or in float64 where the
    parameters are.  Jordan 2024 ("Muon"); Bernstein and Newhouse 2024 (arXiv 2409.20325).
    """

    separable = True

    varying = True  # not one linear map: the update's length does not depend on the gradient's

    iterations: Count = 5  #: Newton–Schulz steps, ≥ 1
    skip: tuple[str, ...] = ()  #: patterns (``head.*``) of block names that go to the fallback

    def __post_init__(self) -> None:
        check_bounds(self)

    def refuses(self, block: Block) -> str | None:
        if block.complex:
            return "complex parameter"
        if len(block.shape) != 2:
            return f"not a matrix, but of shape {list(block.shape)}"
        if 1 in block.shape:
            return f"a matrix of one row or column, of shape {list(block.shape)}"
        for pattern in self.skip:
            if fnmatchcase(block.name, pattern):
                return f'excluded by the pattern "{pattern}" in skip'
        return None

    def init(self, like: BlockVector, ctx: Context) -> None:
        return None

    def apply(self, state: None, v: BlockVector, ctx: Context) -> Solve:
        x = v.empty_like()
        by_shape: dict[torch.Size, list[str]] = {}
        for name, shape in v.layout.shapes.items():
            by_shape.setdefault(shape, []).append(name)
        for (o, i), names in by_shape.items():  # blocks of one shape are one batched product
            stacked = torch.stack([v[name] for name in names])
            scale = max(1.0, o / i) ** 0.5
            for name, near in zip(names, orthogonalised(stacked, self.iterations), strict=True):
                x[name].copy_(near).mul_(scale)
        return Solve(x)


def orthogonalised(v: Float[Tensor, "*b o i"], iterations: int) -> Float[Tensor, "*b o i"]:
    """Each matrix with its singular values moved near 1; in float32 at least."""
    x = v.to(work_dtype(v.dtype))
    tall = x.shape[-2] > x.shape[-1]
    if tall:  # the Gram matrix on the short side is the small one
        x = x.mT
    norm: Tensor = torch.linalg.matrix_norm(x, keepdim=True)
    x = x / norm.clamp(min=SMALLEST_NORM)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x
