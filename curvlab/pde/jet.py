"""Jets: values together with derivatives in the coordinates, propagated through torch functions.

A jet stands where a tensor would, in the ``forward`` of any module: torch calls ``__torch_function__``, which
applies the chain and product rules.  Taylor mode: one pass computes all derivatives that were asked for, at
about the cost of one forward pass per channel (arXiv 2405.15603, Appendix; Griewank and Walther, ch. 13).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from curvlab.pde.axes import AXES
from curvlab.pde.chain_rule import elementwise
from curvlab.pde.channels import Channels, Hear, NoRule
from curvlab.pde.elementwise import SMOOTH
from curvlab.pde.kinks import KINKED, KINKED_ONCE, lacks, refusal
from curvlab.pde.partials import Derivative, Laplacian
from curvlab.pde.sums_products import SUMS_PRODUCTS

#: torch function -> its rule
RULES: dict[str, Callable[..., Any]] = {**SUMS_PRODUCTS, **AXES}


class NoAttribute(NoRule, AttributeError):
    """An attribute of tensors that jets lack."""


class Jet(Channels):
    """``Channels`` that stand in the place of a tensor ``[n, …]``.

    A function without a rule raises ``NoRule``, one without a second
    derivative ``ConfigError`` where a second derivative is needed.
    """

    @classmethod
    def coordinates(cls, x: Float[Tensor, "n d"], keys: tuple[Derivative, ...], hear: Hear | None) -> Jet:
        """The coordinates themselves: derivatives of the first order are unit vectors, higher ones zero."""
        Z = x.new_zeros(len(keys), *x.shape)
        Z[0] = x
        for channel, key in zip(Z, keys, strict=True):
            if not isinstance(key, Laplacian) and len(key) == 1:
                channel[:, key[0]] = 1.0
        return cls(Z, keys, hear)

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
        return elementwise(smooth, args[0])
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
