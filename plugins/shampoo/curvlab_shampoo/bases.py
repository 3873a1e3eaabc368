"""Eigenbases of the moments along each axis of a block, and products with them."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.kronecker import rotate
from curvlab.linalg.modes import on_axis
from curvlab.linalg.outer import Outer
from curvlab.protocols.backend import Backend
from curvlab.protocols.structure import Structure, as_gram
from curvlab_shampoo.grams import axes

PART = "soap"

#: of a moment's mean eigenvalue: the largest that is added to its diagonal, along a ramp, before its
#: eigenvectors are looked for.  Among directions that no gradient has shown yet, rounding would choose
TILT = 1e-3
#: the same for the first eigenvectors: of one gradient only the leading directions are known, and rounding of
#: relative size ε d / TILT would be in the others
FIRST_TILT = 1e-2

#: of a block, one per axis; ``None`` is the identity
Bases = list[Tensor | None]


def identity(L: Structure) -> Tensor | None:
    """The basis before any gradient; ``None`` where L never turns."""
    if not as_gram(L.family, PART).rotates:
        return None
    return torch.eye(L.d, dtype=L.like.dtype, device=L.like.device)


def eigenvectors(L: Structure, backend: Backend) -> Float[Tensor, "d d"]:
    """The eigenvectors of L and its ramp, the largest first; from the moments of one gradient."""
    gram = as_gram(L.family, PART)
    tilted = replace(L, **{name: t.clone() for name, t in L.tensors().items()})  # type: ignore[type-var]
    gram.average_(tilted, 1.0, _ramp(L, FIRST_TILT).sqrt().diag(), 1.0, backend)
    _, Q = gram.eigh(tilted, backend)
    assert Q is not None
    return Q.flip(-1)


def power_step(
    L: Structure, Q: Float[Tensor, "d d"], backend: Backend
) -> tuple[Float[Tensor, "d d"], Float[Tensor, " d"]]:
    """One power iteration of L and its ramp from Q, columns first sorted by ``diag(Qᵀ L Q)``; their order."""
    P = (L @ Q).addcmul_(Q, _ramp(L).unsqueeze(-1))
    order = torch.argsort((Q * P).sum(0), descending=True, stable=True)
    return backend.qr(P[:, order]), order


def _ramp(L: Structure, tilt: float = TILT) -> Float[Tensor, " d"]:
    """What is added to the diagonal: from ``tilt`` of its mean down to nearly nothing."""
    mean = L.mean_diagonal()
    return torch.arange(L.d, 0, -1, dtype=mean.dtype, device=mean.device) * (mean * (tilt / L.d))


def turned(g: Tensor | Outer, bases: Bases) -> Tensor:
    """``Qᵀ g``: the block in the bases; itself if there are none."""
    if len(bases) == 2:
        return rotate(g, *bases)
    T = g.dense() if isinstance(g, Outer) else g
    return _along(T, bases)


def turned_as_held(g: Tensor | Outer, bases: Bases) -> Tensor | Outer:
    """``Qᵀ g``, the factors turned if g is held as them and has fewer rows than a basis has."""
    if isinstance(g, Outer) and len(bases) == 2 and len(g.left) <= min(g.left.shape[1], g.right.shape[1]):
        Q_B, Q_A = bases
        return Outer(g.left if Q_B is None else g.left @ Q_B, g.right if Q_A is None else g.right @ Q_A)
    return turned(g, bases)


def turned_back(T: Tensor, bases: Bases, out: Tensor) -> None:
    """``out ← Q T``."""
    if len(bases) == 2:
        Q_B, Q_A = bases
        T = T if Q_B is None else Q_B @ T
        if Q_A is not None:
            torch.mm(T, Q_A.mT, out=out)
            return
    elif bases:
        T = _along(T, [None if Q is None else Q.mT for Q in bases])
    out.copy_(T)


def _along(T: Tensor, matrices: Bases) -> Tensor:
    """Every axis's rows times its matrix."""
    shape = T.shape
    T = T.reshape(axes(shape))
    for n, M in enumerate(matrices):
        if M is not None:
            T = on_axis(T, n, lambda rows, M=M: rows @ M)  # type: ignore[misc]
    return T.reshape(shape)
