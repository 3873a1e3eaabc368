"""Rules for jets under sums and products of tensors, products with matrices included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from curvlab.pde.chain_rule import elementwise
from curvlab.pde.channels import Channels, NoRule
from curvlab.pde.elementwise import power
from curvlab.pde.partials import Derivative, Laplacian, product


def _add(a: Any, b: Any, *, alpha: float = 1) -> Channels:
    return _sum(a, b, alpha)


def _sub(a: Any, b: Any, *, alpha: float = 1) -> Channels:
    return _sum(a, b, -alpha)


def _sum(a: Any, b: Any, alpha: float) -> Channels:
    """``a + alpha · b``; a constant changes the value alone."""
    if isinstance(a, Channels) and isinstance(b, Channels):
        left, right = _aligned(a, b)
        return a.like(left + alpha * right)
    if isinstance(a, Channels):
        return a.like(_shifted(a.Z, alpha * b))
    assert isinstance(b, Channels)
    return b.like(_shifted(alpha * b.Z, a))


def _shifted(Z: Tensor, constant: Any) -> Tensor:
    """Channels whose value is moved by a constant."""
    if not isinstance(constant, Tensor) or constant.dim() == 0:
        return torch.cat([Z[:1] + constant, Z[1:]])
    while Z.dim() <= constant.dim():
        Z = Z.unsqueeze(1)
    value = Z[0] + constant
    return torch.cat([value.unsqueeze(0), Z[1:].expand(-1, *value.shape)])


def _aligned(a: Channels, b: Channels) -> tuple[Tensor, Tensor]:
    """Channels of two jets whose values broadcast."""
    A, B = a.Z, b.Z
    while A.dim() < B.dim():
        A = A.unsqueeze(1)
    while B.dim() < A.dim():
        B = B.unsqueeze(1)
    return A, B


def _mul(a: Any, b: Any) -> Channels:
    if not isinstance(a, Channels):
        a, b = b, a
    assert isinstance(a, Channels)
    if not isinstance(b, Channels):
        return a.like(_scaled(a.Z, b))
    left, right = map(a.like, _aligned(a, b))
    return a.like(torch.stack([_product(left, right, key) for key in a.keys]))


def _scaled(Z: Tensor, constant: Any) -> Tensor:
    if isinstance(constant, Tensor):
        while Z.dim() <= constant.dim():
            Z = Z.unsqueeze(1)
    scaled: Tensor = Z * constant
    return scaled


def _product(a: Channels, b: Channels, key: Derivative) -> Tensor:
    """One channel of a product."""
    if isinstance(key, Laplacian):
        crossed = torch.stack([a.of((k,)) * b.of((k,)) for k in key.coordinates]).sum(0)
        return a.of(key) * b.of(()) + 2 * crossed + a.of(()) * b.of(key)
    total: Tensor | None = None
    for count, left, right in product(key):
        term = count * a.of(left) * b.of(right)
        total = term if total is None else total + term
    assert total is not None
    return total


def _div(a: Any, b: Any) -> Channels:
    return _mul(a, elementwise(power(-1.0), b) if isinstance(b, Channels) else 1.0 / b)


def _pow(a: Any, exponent: Any) -> Channels:
    if not isinstance(a, Channels) or not isinstance(exponent, (int, float)):
        raise NoRule("torch.pow of a jet as the exponent")
    return elementwise(power(float(exponent)), a)


def _linear(x: Channels, weight: Tensor, bias: Tensor | None = None) -> Channels:
    if not isinstance(x, Channels) or any(isinstance(t, Channels) for t in (weight, bias)):
        raise NoRule("torch.nn.functional.linear of weights that depend on the coordinates")
    Y = F.linear(x.Z, weight)
    if bias is not None:
        unit = Y.new_zeros(len(x.keys), *(1,) * (Y.dim() - 1))
        unit[0] = 1.0
        Y = Y + unit * bias
    if x.hear is not None:
        x.hear(weight, bias, x.Z, Y)
    return x.like(Y)


def _matmul(a: Any, b: Any) -> Channels:
    if isinstance(a, Channels) and isinstance(b, Tensor) and b.dim() == 2:
        return a.like(a.Z @ b)
    raise NoRule("torch.matmul of other than a jet and a matrix")


#: torch function -> its rule
SUMS_PRODUCTS: dict[str, Callable[..., Channels]] = {
    "add": _add,
    "div": _div,
    "linear": _linear,
    "matmul": _matmul,
    "mul": _mul,
    "multiply": _mul,
    "neg": lambda x: x.like(-x.Z),
    "pow": _pow,
    "sub": _sub,
    "subtract": _sub,
    "true_divide": _div,
}
