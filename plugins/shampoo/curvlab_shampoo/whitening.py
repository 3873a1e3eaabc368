"""Moments along an axis, of gradients whitened along all other axes: what KL-Shampoo and KL-SOAP average.

A block's gradient with covariance ``S_1 ⊗ … ⊗ S_N`` has along axis n the moments
``E[W_(n) W_(n)ᵀ] = (D/d_n) S_n`` if W is the gradient with ``S_m^{-1/2}`` on every other axis m.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.linalg.outer import Outer
from curvlab.protocols.context import Context
from curvlab.protocols.structure import Structure
from curvlab_shampoo.bases import Bases
from curvlab_shampoo.grams import average_factored_, average_rows_, axes, is_factored

#: of one axis, ``[d]``
Roots = list[Tensor]


def eigenvalues(L: Structure, Q: Float[Tensor, "d d"]) -> Float[Tensor, " d"]:
    """``diag(Qᵀ L Q)``; ``2 d³`` flops if L is dense."""
    return ((L @ Q) * Q).sum(0).clamp_(min=0.0)


def inverse_roots(values: list[Tensor], damping: float, scale: Tensor | None = None) -> Roots:
    """``(l_n + λ avg(l_n))^{-1/2}`` for every axis n.

    Zero where that is rounding (only without damping).  An axis that has seen nothing but zeros counts as
    ``scale^{1/N} I``, or as I without a scale.
    """
    found = []
    for some in values:
        mean = some.mean()
        damped = some + damping * mean
        root = torch.where(damped > torch.finfo(some.dtype).eps * mean, damped.rsqrt(), 0.0)
        first = torch.ones_like(mean) if scale is None else scale ** (-0.5 / len(values))
        found.append(torch.where(mean > 0, root, first))
    return found


def on_axes(T: Tensor, roots: Roots, skip: int | None = None) -> Tensor:
    """T, its axes as in ``axes``, with ``Diag(root)`` on every axis but one."""
    for n, root in enumerate(roots):
        if n != skip:
            T = T * root.reshape([-1 if k == n else 1 for k in range(T.dim())])
    return T


def average_whitened_(
    grams: list[Structure],
    bases: Bases,
    values: list[Tensor],
    g: Tensor | Outer,
    turned: Tensor | Outer,
    weight: float,
    damping: float,
    ctx: Context,
    part: str,
) -> None:
    """``L_n ← (1 − w) L_n + w Π[W_(n) W_(n)ᵀ] d_n/D``, and their eigenvalues l_n, from a gradient.

    ``turned`` is Qᵀ G.  W is G with ``(l_m + λ avg(l_m))^{-1/2}`` in the basis of every axis m other than n,
    all of them as they were before.  The first gradient finds moments of zero: with the mean square of its
    entries for S then, ``L_n`` has the scale of the N-th root of a squared gradient, as every later one.  So
    the product of all moments has the scale of a squared gradient.  ``3.2·D·Σ d_n`` flops for dense L_n, or
    those of ``average_factored_`` if the gradient is held as factors of few rows.
    """
    T = turned.dense() if isinstance(turned, Outer) else turned
    T = T.reshape(axes(T.shape))
    scale = T.square().mean()
    scale = torch.where(scale > 0, scale, 1.0)
    roots = inverse_roots([e.to(T.dtype) for e in values], damping, scale)
    for n, (L, Q, e) in enumerate(zip(grams, bases, values, strict=True)):
        share = (L.d / T.numel()) ** 0.5
        W = on_axes(T, roots, skip=n).movedim(n, -1).reshape(-1, L.d) * share
        size = W.square().sum(0)
        ctx.storage.updated_(e, lambda e, s=size: e.lerp_(s.to(e.dtype), weight))  # type: ignore[misc]
        if isinstance(g, Outer) and isinstance(turned, Outer) and is_factored(g, L):
            X, others = (g.left, turned.right) if n == 0 else (g.right, turned.left)
            average_factored_(L, X, others * (roots[1 - n] * share), weight, ctx)
        else:
            average_rows_(L, W if Q is None else W @ Q.mT, weight, ctx, part)
