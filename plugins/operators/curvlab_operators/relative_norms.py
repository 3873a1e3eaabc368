"""Relative errors of functions on a grid: the norm of an example's error over the norm of its target."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.protocols.bounds import Positive, check_bounds
from curvlab.protocols.loss import Loss, Over, Weights


class RelativeNorm(Loss):
    """``ℓ = ‖R(f − y)‖ / ‖R y‖`` for each example, or its square; R is linear and acts on the whole example.

    With ``u = R(f − y)``, ``û = u/‖u‖`` and ``t = ‖R y‖`` the Hessian of an example is

        Rᵀ (I − û ûᵀ) R / (‖u‖ t),        squared: 2 RᵀR / t².

    Both are positive semi-definite.  The first grows without bound as the error falls, and is 0 along the
    error; at f = y, where the norm has no derivative, gradient and curvature are 0.  A target that is zero
    has no relative error: the loss is not finite.  Columns and samples cost one product with Rᵀ each; there
    are as many columns as R has rows.
    """

    over: Over = "mean"
    squared: bool

    @abstractmethod
    def forms(self, e: Float[Tensor, "n c *grid"]) -> Float[Tensor, "n m"]:
        """``R e``, example by example."""

    @abstractmethod
    def adjoint(
        self, u: Float[Tensor, "n m"], like: Float[Tensor, "n c *grid"]
    ) -> Float[Tensor, "n c *grid"]:
        """``Rᵀ u``, in the shape of ``like``."""

    def of_examples(self, outputs: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
        """``‖R(f − y)‖ / ‖R y‖``, whether or not the loss is its square."""
        return self._norm(self.forms(outputs - targets)) / self._norm(self.forms(targets))

    def require(self, outputs: Any, targets: Any) -> None:
        f, y = (tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__ for t in (outputs, targets))
        if f != y or len(f) < 2:
            what = f"{self.name}: outputs have shape {f}, targets {y}; expected one shape [n, c, *grid]"
            raise ConfigError(Fault(what, hint="reshape the targets as the outputs"))

    def term_weights(
        self, targets: Any, examples: int, like: Tensor, per_weight: Callable[[], Tensor]
    ) -> Weights:
        return 1.0

    def total(self, outputs: Any, targets: Any, weights: Weights) -> Float[Tensor, ""]:
        terms = self.of_examples(outputs, targets)
        found: Tensor = ((terms.square() if self.squared else terms) * weights).sum()
        return found

    def mean(self, outputs: Any, targets: Any) -> Float[Tensor, ""]:
        return self.total(outputs, targets, 1.0) / len(outputs)

    def hessian_product(self, outputs: Any, targets: Any, weights: Weights, v: Any) -> Any:
        direction, root = self._curvature(outputs, targets, weights)
        bent = _without(self.forms(v), direction) * root.square()
        return self.adjoint(bent, outputs)

    def hessian_columns(self, outputs: Any, targets: Any, weights: Weights) -> Iterator[Any]:
        direction, root = self._curvature(outputs, targets, weights)
        for k in range(direction.shape[1]):
            column = -direction * direction[:, k : k + 1]
            column[:, k] += 1.0
            yield self.adjoint(column * root, outputs)

    def draw(self, outputs: Any, examples: int, generator: torch.Generator) -> Float[Tensor, "n m"]:
        m = self.forms(outputs[:1]).shape[1]
        return torch.randn(examples, m, dtype=outputs.dtype, device=outputs.device, generator=generator)

    def sampled_column(self, outputs: Any, targets: Any, weights: Weights, noise: Any) -> Any:
        direction, root = self._curvature(outputs, targets, weights)
        return self.adjoint(_without(noise, direction) * root, outputs)

    def _curvature(
        self, outputs: Tensor, targets: Tensor, weights: Weights
    ) -> tuple[Float[Tensor, "n m"], Float[Tensor, "n 1"]]:
        """û, or zeros if squared, and the root of what multiplies ``Rᵀ (I − û ûᵀ) R``."""
        u = self.forms(outputs.detach() - targets)
        t = self._norm(self.forms(targets)).unsqueeze(1)
        weight = weights if isinstance(weights, float) else weights.unsqueeze(1)
        if self.squared:
            return torch.zeros_like(u), (2.0 * weight) ** 0.5 / t
        size = self._norm(u).unsqueeze(1)
        per = torch.where(size > 0, 1.0 / size, 0.0)
        return u * per, (weight * per / t) ** 0.5

    @staticmethod
    def _norm(u: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        norm: Tensor = torch.linalg.vector_norm(u, dim=1)
        return norm


@dataclass(frozen=True)
class RelativeL2(RelativeNorm):
    """The root of the sum of squared errors over that of squared targets, over all points of an example."""

    squared: bool = False  #: the square of it, whose curvature is bounded

    def forms(self, e: Float[Tensor, "n c *grid"]) -> Float[Tensor, "n m"]:
        return e.flatten(1)

    def adjoint(
        self, u: Float[Tensor, "n m"], like: Float[Tensor, "n c *grid"]
    ) -> Float[Tensor, "n c *grid"]:
        return u.view(like.shape)


@dataclass(frozen=True)
class RelativeH1(RelativeNorm):
    """The same with the squares of first differences on the grid, over its spacing, added to the squares.

    ``‖e‖² = Σ_points e² + Σ_axes Σ_pairs ((e_{j+1} − e_j) N / length)²`` on N points an axis: H¹ with the
    gradient by differences between neighbors, of second order at their midpoints.
    """

    squared: bool = False  #: the square of it, whose curvature is bounded
    periodic: bool = False  #: whether the last point of an axis is the first one's neighbor
    length: Positive = 1.0  #: of each axis

    def __post_init__(self) -> None:
        check_bounds(self)

    def require(self, outputs: Any, targets: Any) -> None:
        super().require(outputs, targets)
        if outputs.dim() < 3:
            what = f"{self.name}: outputs have shape {tuple(outputs.shape)}; expected [n, c, *grid]"
            raise ConfigError(Fault(what, hint="keep the axes of the grid, or use relative-l2"))

    def example(self, examples: int, generator: torch.Generator) -> tuple[Any, Any]:
        shape, device = (examples, 1, 3, 2), generator.device
        f, y = (torch.randn(shape, dtype=torch.float64, generator=generator, device=device) for _ in "fy")
        return f, y

    def forms(self, e: Float[Tensor, "n c *grid"]) -> Float[Tensor, "n m"]:
        return torch.cat([part.flatten(1) for part in (e, *self._differences(e))], dim=1)

    def adjoint(
        self, u: Float[Tensor, "n m"], like: Float[Tensor, "n c *grid"]
    ) -> Float[Tensor, "n c *grid"]:
        shapes = [like.shape, *(d.shape for d in self._differences(like))]
        parts: list[Tensor] = [
            part.view(shape)
            for part, shape in zip(torch.split(u, [s[1:].numel() for s in shapes], 1), shapes, strict=True)
        ]
        values = parts[0]
        for axis, d in enumerate(parts[1:], start=2):
            scaled = d * (like.shape[axis] / self.length)
            if self.periodic:
                values = values + scaled.roll(1, axis) - scaled
            else:
                end = scaled.new_zeros(()).expand(*(1 if k == axis else s for k, s in enumerate(d.shape)))
                values = values + torch.cat((end, scaled), axis) - torch.cat((scaled, end), axis)
        return values

    def _differences(self, e: Float[Tensor, "n c *grid"]) -> Iterator[Tensor]:
        for axis in range(2, e.dim()):
            step = e.roll(-1, axis) - e if self.periodic else e.diff(dim=axis)
            yield step * (e.shape[axis] / self.length)


def _without(u: Float[Tensor, "n m"], direction: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """``(I − d dᵀ) u``."""
    return u - direction * (direction * u).sum(1, keepdim=True)
