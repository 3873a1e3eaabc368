"""Derivatives in the coordinates by nested forward-mode differentiation, for any function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import jvp

from curvlab.pde.partials import Derivative, Laplacian, Partial

#: the network: ``[n, d]`` to ``[n, q]``, each row of its own
Network = Callable[[Tensor], Tensor]


def nested(
    net: Network, x: Float[Tensor, "n d"], wanted: Iterable[Derivative]
) -> Mapping[Derivative, Float[Tensor, "n q"]]:
    """Each derivative by as many nested Jacobian-vector products as its order.

    The slow twin of jets: a derivative of order k costs about 2^k forward passes, and nothing is shared.
    Rows must not depend on each other, as those of BatchNorm in training do.
    """
    return {each: _derivative(net, x, each) for each in wanted}


def _derivative(net: Network, x: Tensor, derivative: Derivative) -> Tensor:
    if isinstance(derivative, Laplacian):
        return torch.stack([_partial(net, (k, k))(x) for k in derivative.coordinates]).sum(0)
    return _partial(net, derivative)(x)


def _partial(net: Network, partial: Partial) -> Network:
    for coordinate in partial:
        net = _along(net, coordinate)
    return net


def _along(net: Network, coordinate: int) -> Network:
    """The derivative of every row in one of its coordinates."""

    def derivative(x: Tensor) -> Tensor:
        unit = torch.zeros_like(x)
        unit[:, coordinate] = 1.0
        found: Tensor = jvp(net, (x,), (unit,))[1]
        return found

    return derivative
