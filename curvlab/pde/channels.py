"""Values and derivatives as channels of one tensor: what the rules for torch functions act on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from jaxtyping import Float
from torch import Tensor

from curvlab.pde.partials import Derivative, order

#: is called with every product with a matrix: weight, bias, input channels and output channels
Hear = Callable[[Tensor, Tensor | None, Float[Tensor, "s n *m i"], Float[Tensor, "s n *m o"]], None]

Own = TypeVar("Own", bound="Channels")


class NoRule(Exception):
    """A torch function without a rule for jets; the message names it."""


class Channels:
    """A tensor ``[n, …]`` as a function of the coordinates: ``Z [s, n, …]``, a channel for each of ``keys``.

    The first channel is the value.  ``hear`` is called with every product with a matrix.
    """

    def __init__(self, Z: Tensor, keys: tuple[Derivative, ...], hear: Hear | None = None) -> None:
        self.Z, self.keys, self.hear = Z, keys, hear

    def like(self: Own, Z: Tensor) -> Own:
        """Another tensor ``[s, m, …]`` with the same channels."""
        return type(self)(Z, self.keys, self.hear)

    def of(self, key: Derivative) -> Tensor:
        """One channel ``[n, …]``; raises ``ValueError`` if it is none of ``keys``."""
        return self.Z[self.keys.index(key)]

    @property
    def order(self) -> int:
        """The highest order of its channels."""
        return max(order(key) for key in self.keys)
