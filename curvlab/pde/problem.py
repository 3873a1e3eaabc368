"""Problems: a differential equation with its terms, unknown coefficients, and a solution if it is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.errors import ConfigError, Fault
from curvlab.pde.derivatives import Transform
from curvlab.pde.field import Field
from curvlab.pde.points import Points, Sizes
from curvlab.protocols.bounds import Positive, check_bounds

#: ``(u, x) ↦ r``: by how much u misses an equation at points x ``[n, d]``; ``[n]`` or ``[n, q]``
Residual = Callable[[Field, Tensor], Any]


@dataclass(frozen=True)
class Term:
    """One term of the loss, ``½ weight · mean_n Σ_q r_nq²``: a residual and the points where it holds."""

    residual: Residual
    points: Points
    weight: Positive = 1.0
    name: str = ""

    def __post_init__(self) -> None:
        check_bounds(self)
        if not callable(self.residual):
            raise ConfigError(
                Fault(
                    f"residual = {self.residual!r:.60} is not a function of (u, x)",
                    path="residual",
                    hint="write def residual(u, x): return u.laplacian() - f(x)",
                )
            )

    @property
    def label(self) -> str:
        """What messages call it."""
        return self.name or getattr(self.residual, "__name__", type(self.residual).__name__)


@dataclass(frozen=True)
class Problem:
    """A differential equation with everything that a solution is to satisfy.

    ``coordinates`` names each coordinate and gives its range.  ``outputs`` is the number q of functions
    sought.  ``transform(x, N)`` makes the solution of the network's outputs N ``[n, q]``, for conditions that
    hold exactly; ``unknowns`` are coefficients to be found, with the values that they start from.
    ``reference`` is the solution where it is known, from x ``[n, d]`` to ``[n]`` or ``[n, q]``; errors
    are measured against it.  Raises ``ConfigError``.
    """

    coordinates: Mapping[str, tuple[float, float]]
    terms: tuple[Term, ...]
    outputs: int = 1
    transform: Transform | None = None
    unknowns: Mapping[str, float] = field(default_factory=dict)
    reference: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", tuple(self.terms))
        faults = [
            Fault(
                f"{name} ranges from {low} to {high}; expected two finite numbers, the first one smaller",
                path="coordinates",
            )
            for name, (low, high) in self.coordinates.items()
            if not -math.inf < low < high < math.inf
        ]
        faults += [
            Fault(f'unknown "{name}" is not a name; write it as a Python variable', path="unknowns")
            for name in self.unknowns
            if not name.isidentifier()
        ]
        if not self.terms:
            faults.append(Fault("the problem has no terms", path="terms", hint="add a Term for the equation"))
        if not self.coordinates:
            faults.append(Fault("the problem has no coordinates", path="coordinates"))
        if self.outputs < 1:
            faults.append(Fault(f"outputs = {self.outputs} must be at least 1", path="outputs"))
        if faults:
            raise ConfigError(*faults)

    @property
    def dimension(self) -> int:
        """Coordinates."""
        return len(self.coordinates)

    @property
    def columns(self) -> int:
        """Data columns of the term that has most of them."""
        known = [t.points.data for t in self.terms]
        return max((k.shape[1] for k in known if k is not None), default=0)

    def draw(
        self, seed: int = 0, sizes: Callable[[int], Sizes] | None = None
    ) -> tuple[Float[Tensor, "n d"], ...]:
        """The points of every term, each term from a seed of its own; ``sizes(t)`` is term t's residual."""
        found = []
        for t, term in enumerate(self.terms):
            generator = torch.Generator(device="cpu").manual_seed((seed * 1_000_003 + t) % 2**63)
            known = sizes(t) if sizes is not None and term.points.adaptive else None
            found.append(term.points.draw(self.coordinates, generator, known))
        return tuple(found)

    def test_points(self, count: int, seed: int = 0) -> Float[Tensor, "n d"]:
        """Uniform points inside, other than those of training: where errors are measured."""
        generator = torch.Generator(device="cpu").manual_seed((seed * 1_000_003 + len(self.terms)) % 2**63)
        low, high = torch.tensor(list(self.coordinates.values()), dtype=torch.float64, device="cpu").mT
        unit = torch.rand(count, self.dimension, dtype=torch.float64, generator=generator, device="cpu")
        points: Tensor = low + unit * (high - low)
        return points

    def rows(self, points: tuple[Tensor, ...], like: Tensor | None = None) -> Float[Tensor, "k d+c+2"]:
        """Points of every term as rows: coordinates, data, weight, number of the term; terms in order.

        With ``like``, in its dtype and on its device.  Raises ``ConfigError`` for points of another shape.
        """
        if len(points) != len(self.terms):
            raise ConfigError(
                Fault(f"{len(points)} sets of points for {len(self.terms)} terms", path="points")
            )
        found = []
        for t, (term, x) in enumerate(zip(self.terms, points, strict=True)):
            known = term.points.data
            self._require_points(term, x, known)
            data = x.new_zeros(len(x), self.columns)
            if known is not None and len(x):
                data[:, : known.shape[1]] = known.to(x)
            found.append(torch.cat([x, data, x.new_zeros(len(x), 1), x.new_full((len(x), 1), t)], 1))
        rows = self.weighted(torch.cat(found))
        return rows if like is None else rows.to(dtype=like.dtype, device=like.device)

    def _require_points(self, term: Term, x: Tensor, known: Tensor | None) -> None:
        """Raise ``ConfigError`` for points of another dimension, or of another number than their data."""
        if x.dim() != 2 or x.shape[1] != self.dimension:
            raise ConfigError(
                Fault(
                    f'points of term "{term.label}" have the shape {list(x.shape)}; expected'
                    f" [n, {self.dimension}], for {', '.join(self.coordinates)}",
                    path="points",
                )
            )
        if known is not None and len(x) not in (0, len(known)):
            raise ConfigError(
                Fault(
                    f'{len(x)} points for term "{term.label}", whose data are of {len(known)} points',
                    path="points",
                )
            )

    def weighted(self, rows: Float[Tensor, "k d+c+2"]) -> Float[Tensor, "k d+c+2"]:
        """Rows with the weights that they have as a batch.

        A weight is ``√(weight_t k / (2 k_t))`` with k_t rows of a term and k of all, so that the mean over
        rows of ``Σ_q (weight r)²`` is the loss.
        """
        term = rows[:, -1].long()
        counts = torch.bincount(term, minlength=len(self.terms)).clamp(min=1).to(rows.dtype)
        own = rows.new_tensor([t.weight for t in self.terms])
        weight = (own * len(rows) / (2 * counts)).sqrt()
        found = rows.clone()
        found[:, -2] = weight[term]
        return found
