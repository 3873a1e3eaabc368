"""Derivatives of a network in the coordinates: by jets where it has rules for them, else nested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.norms import ComposedNorms
from curvlab.objectives.products import plain_kernels
from curvlab.pde.jet import Hear, Jet, NoRule
from curvlab.pde.kinks import require_smooth
from curvlab.pde.nested import nested
from curvlab.pde.partials import Derivative, closed, order

#: ``(x, N) ↦ u``: what is made of the network's outputs, as a hard constraint is
Transform = Callable[[Any, Any], Any]


@dataclass
class Differentiator:
    """Evaluates u and its derivatives; remembers whether jets work for this network, and if not, why."""

    net: nn.Module
    transform: Transform | None = None
    #: the torch function without a rule that made it change to nested differentiation
    reason: str | None = field(default=None, init=False)
    #: the highest order of which the network is known to have all derivatives
    _smooth: int = field(default=0, init=False)

    def u(self, x: Any) -> Any:
        """The solution at points, or at jets; raises ``ConfigError`` if the network does not take them."""
        try:
            N = self.net(x)
        except RuntimeError as error:
            if "shape" not in str(error) and "size" not in str(error):
                raise
            raise ConfigError(
                Fault(
                    f"the network fails at points of shape {list(x.shape)}: {error}",
                    hint=f"its first layer must take {x.shape[1]} features: the coordinates of the problem",
                )
            ) from error
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
                if isinstance(jet, Jet):
                    return {each: _matrix(jet.of(each), len(x)) for each in asked}
                value = _matrix(jet, len(x))  # it does not depend on the coordinates
                return {each: value if each == () else value * 0 for each in asked}
        with plain_kernels(self.net), ComposedNorms():
            highest = max(map(order, asked), default=0)
            if highest > self._smooth:
                require_smooth(self.net, self.transform, x, highest)
                self._smooth = highest
            try:
                found = nested(self.u, x, asked)
            except NotImplementedError as error:  # what torch says of a function without forward mode
                raise ConfigError(
                    Fault(
                        f"the network cannot be differentiated {highest} times in the coordinates: {error}",
                        hint="replace this function in the network by others that jets have rules for:"
                        " sums, products, linear layers, smooth activations",
                    )
                ) from error
            return {each: _matrix(t, len(x)) for each, t in found.items()}


def _matrix(u: Any, n: int) -> Float[Tensor, "n q"]:
    """Values as ``[n, q]``; raises ``ConfigError`` for anything else."""
    if not isinstance(u, Tensor) or u.dim() not in (1, 2) or u.shape[0] != n:
        got = f"a tensor of shape {list(u.shape)}" if isinstance(u, Tensor) else f"a {type(u).__name__}"
        raise ConfigError(
            Fault(
                f"the network returns {got} for {n} points",
                hint="return [n] or [n, q]: a value, or q values, for each point",
            )
        )
    return u.unsqueeze(1) if u.dim() == 1 else u
