"""The chain rule for jets: an elementwise function of a jet, in all of its channels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from curvlab.pde.channels import Channels
from curvlab.pde.elementwise import Derivatives
from curvlab.pde.partials import Derivative, Laplacian, chain, order


def elementwise(derivatives: Derivatives, z: Channels) -> Channels:
    """An elementwise function σ by Faà di Bruno's formula; ``derivatives`` are σ's own, ``σ, σ', …``."""
    Z, keys = z.Z, z.keys
    sigma = derivatives(Z[0], max(z.order, 1))
    if len(keys) == 1:
        return z.like(sigma[0].unsqueeze(0))
    moved = sigma[1] * Z[1:]
    first = sum(order(key) == 1 for key in keys)
    parts = [sigma[0].unsqueeze(0), moved[:first]]
    if len(keys) > 1 + first:
        bent = [_bent(z, sigma, key) for key in keys[1 + first :]]
        parts.append(moved[first:] + torch.stack(bent))
    return z.like(torch.cat(parts))


def _bent(z: Channels, sigma: Sequence[Tensor], key: Derivative) -> Tensor:
    """What the second and higher derivatives of σ add to a channel."""
    if isinstance(key, Laplacian):
        start, stop = z.keys.index(key.coordinates[:1]), z.keys.index(key.coordinates[-1:]) + 1
        if stop - start == len(key.coordinates):
            return sigma[2] * z.Z[start:stop].square().sum(0)
        return sigma[2] * torch.stack([z.of((k,)).square() for k in key.coordinates]).sum(0)
    total: Tensor | None = None
    for count, k, factors in chain(key):
        term = count * sigma[k]
        for factor in factors:
            term = term * z.of(factor)
        total = term if total is None else total + term
    assert total is not None, "only derivatives of order two and more are bent"
    return total
