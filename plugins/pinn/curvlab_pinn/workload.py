"""A PINN made ready: a network beside its points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from curvlab.protocols.picture import Curve, Field, Picture
from curvlab.protocols.sampler import Draw
from curvlab.protocols.task import Workload
from curvlab_pinn.equations import Equation
from curvlab_pinn.objective import PinnObjective, pinn_objective
from curvlab_pinn.residuals import Residuals, as_rows

#: points along each side of a picture
SHOWN = 81


@dataclass(frozen=True)
class Cloud:
    """Points inside and on the boundary with what is wanted there; test points and a grid with the solution.

    The grid is empty for more than two coordinates.
    """

    inside: Float[Tensor, "n d"]
    source: Float[Tensor, " n"]
    on: Float[Tensor, "m d"]
    given: Float[Tensor, " m"]
    test: Float[Tensor, "k d"]
    solution: Float[Tensor, " k"]
    grid: Float[Tensor, "g d"]
    on_grid: Float[Tensor, " g"]

    @classmethod
    def drawn(cls, equation: Equation, inside: int, on: int, test: int, seed: int) -> Cloud:
        """Uniformly, in float64 on the CPU: the same points in every precision; as many on every face."""
        generator = torch.Generator(device="cpu").manual_seed(seed)

        def draw(n: int) -> Tensor:
            return torch.rand(n, equation.dimension, dtype=torch.float64, generator=generator, device="cpu")

        x, b, t = draw(inside), draw(on), draw(test)
        faces = equation.faces()
        for k in range(on):
            axis, side = faces[k % len(faces)]
            b[k, axis] = side
        grid = _grid(equation.dimension)
        solutions = [equation.solution(points) for points in (b, t, grid)]
        return cls(x, equation.source(x), b, solutions[0], t, solutions[1], grid, solutions[2])

    def to(self, *, dtype: torch.dtype, device: torch.device) -> Cloud:
        """The same points elsewhere."""
        return Cloud(*(t.to(dtype=dtype, device=device) for t in vars(self).values()))


class PinnWorkload(Workload):
    """Indices below the number of interior points are those, the others lie on the boundary.

    ``val_l2`` is the relative error ``‖u − u*‖ / ‖u*‖`` at the test points, ``val_loss`` half its square.
    """

    model: Residuals

    def __init__(self, model: Residuals, cloud: Cloud) -> None:
        self.model, self.cloud = model, cloud

    @property
    def size(self) -> int:
        return len(self.cloud.inside) + len(self.cloud.on)

    def objective(self, draw: Draw) -> PinnObjective:
        def points(indices: Tensor) -> Tensor:
            found = indices.to(self.cloud.inside.device)
            n = len(self.cloud.inside)
            inside, on = found[found < n], found[found >= n] - n
            return as_rows(
                self.cloud.inside[inside], self.cloud.source[inside], self.cloud.on[on], self.cloud.given[on]
            )

        objective = pinn_objective(self.model, points(draw.gradient), micro_batch=draw.micro_batch)
        for purpose in ("curvature", "acceptance"):
            chosen = getattr(draw, purpose)
            if chosen is not draw.gradient:
                own = pinn_objective(self.model, points(chosen)).gradient_sample
                setattr(objective, f"{purpose}_sample", own)
        return objective

    @torch.no_grad()
    def metrics(self) -> Mapping[str, float]:
        off = self.model.u(self.cloud.test) - self.cloud.solution
        error = float(torch.linalg.vector_norm(off) / torch.linalg.vector_norm(self.cloud.solution))
        return {"val_loss": 0.5 * error**2, "val_l2": error}

    @torch.no_grad()
    def pictures(self) -> Sequence[Picture]:
        """Solution and network on a grid, and their difference; nothing for more than two coordinates."""
        d = self.cloud.test.shape[1]
        if d > 2:
            return ()
        found, solution = self.model.u(self.cloud.grid), self.cloud.on_grid
        parts = {
            "solution": {"exact": solution, "network": found},
            "error": {"network − exact": found - solution},
        }
        side = torch.linspace(0, 1, SHOWN, dtype=torch.float64, device="cpu")
        if d == 1:
            return [Picture(title, Curve(side, values), ("x", "u")) for title, values in parts.items()]
        axes = ("time t", "x") if bool(self.model.first[0]) else ("x₁", "x₂")
        return [
            Picture(title, Field(side, side, {n: v.view(SHOWN, SHOWN) for n, v in values.items()}), axes)
            for title, values in parts.items()
        ]


def _grid(d: int) -> Float[Tensor, "g d"]:
    """Points of the unit square or interval, the last coordinate running fastest; none of a cube."""
    if d > 2:
        return torch.empty(0, d, dtype=torch.float64, device="cpu")
    side = torch.linspace(0, 1, SHOWN, dtype=torch.float64, device="cpu")
    return torch.cartesian_prod(*[side] * d).reshape(-1, d)
