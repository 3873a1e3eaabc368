"""Problems small enough to be differentiated one number at a time, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from curvlab import pde
from curvlab.objectives.norms import ComposedNorms
from curvlab.objectives.products import unfused_attention
from curvlab.testing.problems import normal


def equation(u: pde.Field, x: Tensor) -> Tensor:
    """Of the second order, not linear, with an unknown coefficient."""
    return u.coefficient("kappa") * u.laplacian() + u() * u.d("x") - math.pi * torch.sin(x[:, 1])


def walls(u: pde.Field, x: Tensor) -> Tensor:
    """Two residuals a point."""
    return torch.stack([u(), u.d("y", "y", "x")], 1)


def measured(u: pde.Field, x: Tensor) -> Tensor:
    """Against data."""
    return u() - u.data()


POINTS = normal(4, 3, seed=5)


def problem() -> pde.Problem:
    """Three terms with weights and data, over three coordinates."""
    return pde.Problem(
        coordinates={"x": (0.0, 1.0), "y": (-1.0, 1.0), "z": (0.0, 2.0)},
        terms=(
            pde.Term(equation, pde.Inside(7), weight=0.5),
            pde.Term(walls, pde.Faces(6), weight=3.0),
            pde.Term(measured, pde.Fixed(POINTS, POINTS.sum(1))),
        ),
        unknowns={"kappa": 1.3},
    )


def mlp(inputs: int = 3, outputs: int = 1, *, bias: bool = True) -> nn.Sequential:
    """Nested, three layers."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(5, 4, bias=bias), nn.GELU())
    layers = (nn.Linear(inputs, 5, bias=bias), nn.Tanh(), inner, nn.Linear(4, outputs, bias=bias))
    return nn.Sequential(*layers).double()


def model(net: nn.Module | None = None) -> pde.Residuals:
    """The problem and a network."""
    return pde.Residuals(mlp() if net is None else net, problem())


def residuals(of: pde.Residuals, points: tuple[Tensor, ...]) -> list[Tensor]:
    """Each term's, ``[n, q]`` times the root of its weight, with derivatives by nested reverse mode."""
    found = []
    for term, x in zip(of.problem.terms, points, strict=True):
        x = x.detach().requires_grad_()
        with ComposedNorms(), unfused_attention():  # whose third derivatives torch has wrong, or not at all
            u = of.net(x)[:, 0]
        first = gradient(u, x)
        if term.residual is equation:
            second = sum(gradient(first[:, k], x)[:, k] for k in range(3))
            r = of.unknowns["kappa"] * second + u * first[:, 0] - math.pi * torch.sin(x[:, 1])
            r = r.unsqueeze(1)
        elif term.residual is walls:
            third = gradient(gradient(first[:, 1], x)[:, 1], x)[:, 0]
            r = torch.stack([u, third], 1)
        else:
            r = (u - x.sum(1)).unsqueeze(1)
        found.append(term.weight**0.5 * r)
    return found


def gradient(u: Tensor, x: Tensor) -> Tensor:
    """Of every entry in its own point, with its graph."""
    (found,) = torch.autograd.grad(u.sum(), x, create_graph=True, materialize_grads=True)
    return found


def loss(of: pde.Residuals, points: tuple[Tensor, ...]) -> Tensor:
    """``Σ_t ½ weight_t mean_n Σ_q r²``."""
    return sum(0.5 * r.square().sum(1).mean() for r in residuals(of, points) if len(r))  # type: ignore[return-value]


def layer(u: pde.Field, x: Tensor) -> Tensor:
    """A layer at x = 1: points are wanted there."""
    return u.laplacian() + 100 * torch.exp(20 * (x[:, 0] - 1))


def adaptive(points: pde.Points | None = None) -> pde.Problem:
    """Adaptive or other points inside, and faces."""
    return pde.Problem(
        {"x": (0.0, 1.0), "y": (0.0, 1.0)},
        (pde.Term(layer, points or pde.Adaptive(60, power=2.0)), pde.Term(lambda u, x: u(), pde.Faces(8))),
        reference=lambda x: torch.sin(math.pi * x).prod(1),
    )


def uniform() -> pde.Problem:
    """The same with other points."""
    return adaptive(pde.Inside(60))
