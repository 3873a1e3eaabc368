"""Derivatives of a network in the coordinates: by jets where it has rules for them, else nested."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from curvlab.errors import ConfigError, Fault
from curvlab.objectives.norms import ComposedNorms
from curvlab.objectives.products import plain_kernels
from curvlab.pde.channels import NoRule
from curvlab.pde.jet import Jet
from curvlab.pde.kinks import require_smooth
from curvlab.pde.nested import nested
from curvlab.pde.partials import Derivative, closed, order

#: ``(x, N) ↦ u``: what is made of the network's outputs, as a hard constraint is
Transform = Callable[[Any, Any], Any]

#: a product with a matrix: weight, bias, input channels ``[s, n, …, i]`` and output channels ``[s, n, …, o]``
Product = tuple[Tensor, Tensor | None, Tensor, Tensor]


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
        self, x: Float[Tensor, "n d"], wanted: Iterable[Derivative], *, heard: bool = False
    ) -> tuple[Mapping[Derivative, Float[Tensor, "n q"]], Sequence[Product]]:
        """Every derivative that is wanted; and, if ``heard``, each product with a matrix, as jets find it.

        There are no products where derivatives are nested.
        """
        asked = tuple(wanted)
        if self.reason is None and (heard or any(d != () for d in asked)):
            products: list[Product] = []

            def hear(weight: Tensor, bias: Tensor | None, Z: Tensor, Y: Tensor) -> None:
                if Y.shape[1] != len(x):
                    raise NoRule("torch.nn.functional.linear where points are not the first axis")
                products.append((weight, bias, Z, Y))

            try:
                jet = self.u(Jet.coordinates(x, closed(asked), hear if heard else None))
            except NoRule as missing:
                self.reason = str(missing)
            else:
                if isinstance(jet, Jet):
                    return {each: _matrix(jet.of(each), len(x)) for each in asked}, products
                value = _matrix(jet, len(x))  # it does not depend on the coordinates
                return {each: value if each == () else value * 0 for each in asked}, products
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
            return {each: _matrix(t, len(x)) for each, t in found.items()}, ()


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
