"""Derivatives of a network in the coordinates: by jets where it has rules for them, else nested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.pde.jet import Hear, Jet, NoRule
from curvlab.pde.nested import nested
from curvlab.pde.partials import Derivative, closed

#: ``(x, N) ↦ u``: what is made of the network's outputs, as a hard constraint is
Transform = Callable[[Any, Any], Any]


@dataclass
class Differentiator:
    """Evaluates u and its derivatives; remembers whether jets work for this network, and if not, why."""

    net: nn.Module
    transform: Transform | None = None
    #: the torch function without a rule that made it change to nested differentiation
    reason: str | None = field(default=None, init=False)

    def u(self, x: Any) -> Any:
        """The solution at points, or at jets."""
        N = self.net(x)
        return N if self.transform is None else self.transform(x, N)

    def __call__(
        self, x: Float[Tensor, "n d"], wanted: Iterable[Derivative], hear: Hear | None = None
    ) -> Mapping[Derivative, Float[Tensor, "n q"]]:
        """Every derivative that is wanted; jets call ``hear`` with each product with a matrix."""
        asked = tuple(wanted)
        if self.reason is None and (hear is not None or any(d != () for d in asked)):
            keys = closed(asked)
            try:
                jet = self.u(Jet.coordinates(x, keys, hear))
            except NoRule as missing:
                self.reason = str(missing)
            else:
                if not isinstance(jet, Jet):
                    return {each: _constant(jet, each) for each in asked}
                return {each: _matrix(jet.of(each), len(x)) for each in asked}
        return {each: _matrix(t, len(x)) for each, t in nested(self.u, x, asked).items()}


def _matrix(u: Tensor, n: int) -> Float[Tensor, "n q"]:
    """Values as ``[n, q]``; raises ``ConfigError`` for another number of rows."""
    if u.dim() == 0 or u.shape[0] != n or u.dim() > 2:
        raise ConfigError(
            Fault(
                f"the network returns a tensor of shape {list(u.shape)} for {n} points",
                hint="return [n] or [n, q]: a value, or q values, for each point",
            )
        )
    return u.unsqueeze(1) if u.dim() == 1 else u


def _constant(u: Tensor, derivative: Derivative) -> Tensor:
    """A solution that does not depend on the coordinates."""
    found = u if derivative == () else u * 0
    return found.unsqueeze(1) if found.dim() == 1 else found
