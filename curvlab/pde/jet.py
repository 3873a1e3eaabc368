"""Jets: values together with derivatives in the coordinates, propagated through torch functions.

A jet stands where a tensor would, in the ``forward`` of any module: torch calls ``__torch_function__``, which
applies the chain and product rules.  Taylor mode: one pass computes all derivatives that were asked for, at
about the cost of one forward pass per channel (arXiv 2405.15603, Appendix; Griewank and Walther, ch. 13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from curvlab.pde.elementwise import SMOOTH, Derivatives, power
from curvlab.pde.kinks import KINKED, KINKED_ONCE, lacks, refusal
from curvlab.pde.partials import Derivative, Laplacian, chain, order, product

#: is called with every product with a matrix: weight, bias, input channels and output channels
Hear = Callable[[Tensor, Tensor | None, Float[Tensor, "s n *m i"], Float[Tensor, "s n *m o"]], None]


class NoRule(Exception):
    """A torch function without a rule for jets; the message names it."""


class NoAttribute(NoRule, AttributeError):
    """An attribute of tensors that jets lack."""


class Jet:
    """A tensor ``[n, …]`` as a function of the coordinates: ``Z [s, n, …]``, a channel for each of ``keys``.

    The first channel is the value.  A function without a rule raises ``NoRule``, one without a second
    derivative ``ConfigError`` where a second derivative is needed.
    """

    def __init__(self, Z: Tensor, keys: tuple[Derivative, ...], hear: Hear | None = None) -> None:
        self.Z, self.keys, self.hear = Z, keys, hear

    @classmethod
    def coordinates(cls, x: Float[Tensor, "n d"], keys: tuple[Derivative, ...], hear: Hear | None) -> Jet:
        """The coordinates themselves: derivatives of the first order are unit vectors, higher ones zero."""
        Z = x.new_zeros(len(keys), *x.shape)
        Z[0] = x
        for channel, key in zip(Z, keys, strict=True):
            if not isinstance(key, Laplacian) and len(key) == 1:
                channel[:, key[0]] = 1.0
        return cls(Z, keys, hear)

    def like(self, Z: Tensor) -> Jet:
        """Another jet with the same channels."""
        return Jet(Z, self.keys, self.hear)

    def of(self, key: Derivative) -> Tensor:
        """One channel ``[n, …]``."""
        return self.Z[self.keys.index(key)]

    @property
    def order(self) -> int:
        """The highest order of its channels."""
        return max(order(key) for key in self.keys)

    # what a module reads of a tensor

    is_nested = False

    @property
    def shape(self) -> torch.Size:
        """That of the value."""
        return self.Z.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        """That of all channels."""
        return self.Z.dtype

    @property
    def device(self) -> torch.device:
        """That of all channels."""
        return self.Z.device

    @property
    def ndim(self) -> int:
        """Axes of the value."""
        return self.Z.dim() - 1

    def dim(self) -> int:
        """Axes of the value."""
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        """Lengths of the value's axes."""
        return self.shape if dim is None else self.shape[dim]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Jet:
        own = index if isinstance(index, tuple) else (index,)
        places = (slice(None), *own)
        return self.like(self.Z[places])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or not (name in RULES or hasattr(torch, name)):
            raise NoAttribute(f"Tensor.{name}")
        return lambda *args, **kwargs: _apply(name, (self, *args), kwargs)

    def __add__(self, other: Any) -> Any:
        return _apply("add", (self, other), {})

    def __radd__(self, other: Any) -> Any:
        return _apply("add", (self, other), {})

    def __sub__(self, other: Any) -> Any:
        return _apply("sub", (self, other), {})

    def __rsub__(self, other: Any) -> Any:
        return _apply("sub", (other, self), {})

    def __mul__(self, other: Any) -> Any:
        return _apply("mul", (self, other), {})

    def __rmul__(self, other: Any) -> Any:
        return _apply("mul", (self, other), {})

    def __truediv__(self, other: Any) -> Any:
        return _apply("div", (self, other), {})

    def __rtruediv__(self, other: Any) -> Any:
        return _apply("div", (other, self), {})

    def __pow__(self, other: Any) -> Any:
        return _apply("pow", (self, other), {})

    def __neg__(self) -> Jet:
        return self.like(-self.Z)

    def __matmul__(self, other: Any) -> Any:
        return _apply("matmul", (self, other), {})

    def __rmatmul__(self, other: Any) -> Any:
        return _apply("matmul", (other, self), {})

    def __rpow__(self, other: Any) -> Any:
        return _apply("pow", (other, self), {})

    def __abs__(self) -> Any:
        return _apply("abs", (self,), {})

    def __setitem__(self, index: Any, value: Any) -> None:
        raise NoRule("writing into a tensor")

    def __lt__(self, other: Any) -> Any:
        raise NoRule("comparisons")

    __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __lt__
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        raise NoRule("values as conditions")

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _apply(getattr(func, "__name__", str(func)), args, dict(kwargs or {}))


def _apply(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A torch function of jets."""
    if name in RULES:
        try:
            return RULES[name](*args, **kwargs)
        except TypeError as error:  # arguments that the rule does not take
            raise NoRule(f"torch.{name} as it is called here") from error
    smooth = SMOOTH.get(name)
    if smooth is not None and _default(name, args, kwargs):
        return _elementwise(smooth, args[0])
    if name in KINKED or name in KINKED_ONCE:
        return _kinked(name, args, kwargs)
    raise NoRule(f"torch.{name}")


def _default(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether an elementwise function is called in the form that its derivatives are of."""
    if name == "softplus":
        return args[1:] in ((), (1, 20)) and not kwargs
    if name == "gelu":
        return bool(kwargs.get("approximate", "none") == "none")
    return len(args) == 1 and set(kwargs) <= {"inplace"}


def _elementwise(derivatives: Derivatives, jet: Jet) -> Jet:
    """Faà di Bruno's formula for every channel."""
    Z, keys = jet.Z, jet.keys
    sigma = derivatives(Z[0], max(jet.order, 1))
    if len(keys) == 1:
        return jet.like(sigma[0].unsqueeze(0))
    moved = sigma[1] * Z[1:]
    first = sum(order(key) == 1 for key in keys)
    parts = [sigma[0].unsqueeze(0), moved[:first]]
    if len(keys) > 1 + first:
        bent = [_bent(jet, sigma, key) for key in keys[1 + first :]]
        parts.append(moved[first:] + torch.stack(bent))
    return jet.like(torch.cat(parts))


def _bent(jet: Jet, sigma: Sequence[Tensor], key: Derivative) -> Tensor:
    """What the second and higher derivatives of σ add to a channel."""
    if isinstance(key, Laplacian):
        start, stop = jet.keys.index(key.coordinates[:1]), jet.keys.index(key.coordinates[-1:]) + 1
        if stop - start == len(key.coordinates):
            return sigma[2] * jet.Z[start:stop].square().sum(0)
        return sigma[2] * torch.stack([jet.of((k,)).square() for k in key.coordinates]).sum(0)
    total: Tensor | None = None
    for count, k, factors in chain(key):
        term = count * sigma[k]
        for factor in factors:
            term = term * jet.of(factor)
        total = term if total is None else total + term
    assert total is not None, "only derivatives of order two and more are bent"
    return total


def _kinked(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Jet:
    """A function with a kink: its values alone can be had."""
    jet: Jet = next(a for a in args if isinstance(a, Jet))
    if lacks(name, jet.order):
        raise refusal(name, jet.order)
    if jet.order:
        raise NoRule(f"torch.{name}")
    values = [a.Z[0] if isinstance(a, Jet) else a for a in args]
    function: Any = getattr(F, name, None) or getattr(torch, name)
    return jet.like(function(*values, **kwargs).unsqueeze(0))


# sums and products


def _add(a: Any, b: Any, *, alpha: float = 1) -> Jet:
    return _sum(a, b, alpha)


def _sub(a: Any, b: Any, *, alpha: float = 1) -> Jet:
    return _sum(a, b, -alpha)


def _sum(a: Any, b: Any, alpha: float) -> Jet:
    """``a + alpha · b``; a constant changes the value alone."""
    if isinstance(a, Jet) and isinstance(b, Jet):
        left, right = _aligned(a, b)
        return a.like(left + alpha * right)
    if isinstance(a, Jet):
        return a.like(_shifted(a.Z, alpha * b))
    assert isinstance(b, Jet)
    return b.like(_shifted(alpha * b.Z, a))


def _shifted(Z: Tensor, constant: Any) -> Tensor:
    """Channels whose value is moved by a constant."""
    if not isinstance(constant, Tensor) or constant.dim() == 0:
        return torch.cat([Z[:1] + constant, Z[1:]])
    while Z.dim() <= constant.dim():
        Z = Z.unsqueeze(1)
    value = Z[0] + constant
    return torch.cat([value.unsqueeze(0), Z[1:].expand(-1, *value.shape)])


def _aligned(a: Jet, b: Jet) -> tuple[Tensor, Tensor]:
    """Channels of two jets whose values broadcast."""
    A, B = a.Z, b.Z
    while A.dim() < B.dim():
        A = A.unsqueeze(1)
    while B.dim() < A.dim():
        B = B.unsqueeze(1)
    return A, B


def _mul(a: Any, b: Any) -> Jet:
    if not isinstance(a, Jet):
        a, b = b, a
    assert isinstance(a, Jet)
    if not isinstance(b, Jet):
        return a.like(_scaled(a.Z, b))
    left, right = map(a.like, _aligned(a, b))
    return a.like(torch.stack([_product(left, right, key) for key in a.keys]))


def _scaled(Z: Tensor, constant: Any) -> Tensor:
    if isinstance(constant, Tensor):
        while Z.dim() <= constant.dim():
            Z = Z.unsqueeze(1)
    scaled: Tensor = Z * constant
    return scaled


def _product(a: Jet, b: Jet, key: Derivative) -> Tensor:
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


def _div(a: Any, b: Any) -> Jet:
    return _mul(a, _elementwise(power(-1.0), b) if isinstance(b, Jet) else 1.0 / b)


def _pow(a: Any, exponent: Any) -> Jet:
    if not isinstance(a, Jet) or not isinstance(exponent, (int, float)):
        raise NoRule("torch.pow of a jet as the exponent")
    return _elementwise(power(float(exponent)), a)


def _linear(x: Jet, weight: Tensor, bias: Tensor | None = None) -> Jet:
    if not isinstance(x, Jet) or any(isinstance(t, Jet) for t in (weight, bias)):
        raise NoRule("torch.nn.functional.linear of weights that depend on the coordinates")
    Y = F.linear(x.Z, weight)
    if bias is not None:
        unit = Y.new_zeros(len(x.keys), *(1,) * (Y.dim() - 1))
        unit[0] = 1.0
        Y = Y + unit * bias
    if x.hear is not None:
        x.hear(weight, bias, x.Z, Y)
    return x.like(Y)


def _matmul(a: Any, b: Any) -> Jet:
    if isinstance(a, Jet) and isinstance(b, Tensor) and b.dim() == 2:
        return a.like(a.Z @ b)
    raise NoRule("torch.matmul of other than a jet and a matrix")


# structure: the same for every channel


def _axis(dim: int) -> int:
    return dim if dim < 0 else dim + 1


def _each(name: str) -> Callable[..., Any]:
    """A torch function of one tensor and an axis."""

    def rule(x: Jet, dim: Any = None, *args: Any, **kwargs: Any) -> Jet:
        if dim is None:
            dim = tuple(range(-x.ndim, 0))
        axes = tuple(map(_axis, dim)) if isinstance(dim, (tuple, list)) else _axis(dim)
        return x.like(getattr(torch, name)(x.Z, axes, *args, **kwargs))

    return rule


def _joined(name: str) -> Callable[..., Jet]:
    def rule(tensors: Sequence[Any], dim: int = 0) -> Jet:
        jet: Jet = next(t for t in tensors if isinstance(t, Jet))
        parts = [t.Z if isinstance(t, Jet) else _constant(t, jet).Z for t in tensors]
        return jet.like(getattr(torch, name)(parts, _axis(dim)))

    return rule


def _constant(t: Tensor, jet: Jet) -> Jet:
    Z = t.new_zeros(len(jet.keys), *t.shape)
    return jet.like(torch.cat([t.unsqueeze(0), Z[1:]]))


def _reshape(x: Jet, *shape: Any) -> Jet:
    sizes = shape[0] if len(shape) == 1 and isinstance(shape[0], (tuple, list)) else shape
    return x.like(x.Z.reshape(len(x.keys), *sizes))


def _flatten(x: Jet, start_dim: int = 0, end_dim: int = -1) -> Jet:
    return x.like(x.Z.flatten(_axis(start_dim), _axis(end_dim)))


def _transpose(x: Jet, dim0: int, dim1: int) -> Jet:
    return x.like(x.Z.transpose(_axis(dim0), _axis(dim1)))


def _unbind(x: Jet, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(x.like(Z) for Z in x.Z.unbind(_axis(dim)))


def _chunk(x: Jet, chunks: int, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(x.like(Z) for Z in x.Z.chunk(chunks, _axis(dim)))


def _split(x: Jet, size: Any, dim: int = 0) -> tuple[Jet, ...]:
    return tuple(x.like(Z) for Z in torch.split(x.Z, size, _axis(dim)))


def _to(x: Jet, *args: Any, **kwargs: Any) -> Jet:
    return x.like(x.Z.to(*args, **kwargs))


RULES: dict[str, Callable[..., Any]] = {
    "add": _add,
    "cat": _joined("cat"),
    "chunk": _chunk,
    "concat": _joined("cat"),
    "concatenate": _joined("cat"),
    "contiguous": lambda x: x,
    "div": _div,
    "flatten": _flatten,
    "linear": _linear,
    "matmul": _matmul,
    "mean": _each("mean"),
    "mul": _mul,
    "multiply": _mul,
    "neg": lambda x: -x,
    "pow": _pow,
    "reshape": _reshape,
    "split": _split,
    "squeeze": _each("squeeze"),
    "stack": _joined("stack"),
    "sub": _sub,
    "subtract": _sub,
    "sum": _each("sum"),
    "to": _to,
    "transpose": _transpose,
    "true_divide": _div,
    "unbind": _unbind,
    "unsqueeze": _each("unsqueeze"),
    "view": _reshape,
}
