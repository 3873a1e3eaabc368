"""Small networks and points for them, in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from curvlab.testing.problems import normal
from curvlab_pinn.equations import CosineSum, Equation, HeatDecay, SineProduct
from curvlab_pinn.jets import Sine
from curvlab_pinn.residuals import Residuals, as_rows

EQUATIONS: list[Equation] = [SineProduct(1), SineProduct(3), CosineSum(2), HeatDecay(2), HeatDecay(3)]

ACTIVATIONS = [nn.Tanh, nn.Sigmoid, nn.Softplus, nn.SiLU, nn.Identity, Sine]


def net(d: int, activation: type[nn.Module] = nn.Tanh, *, bias: bool = True, outputs: int = 1) -> nn.Module:
    """Nested, three layers."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(5, 4, bias=bias), activation())
    layers = (nn.Linear(d, 5, bias=bias), activation(), inner, nn.Linear(4, outputs, bias=bias))
    return nn.Sequential(*layers).double()


def derivatives(f: object, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Value ``[n]``, first ``[n, d]`` and second derivatives ``[n, d]`` of a scalar function, by autograd."""
    x = x.clone().requires_grad_()
    u = f(x)  # type: ignore[operator]
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    second = []
    for k in range(x.shape[1]):
        more = torch.autograd.grad(first[:, k].sum(), x, create_graph=True, allow_unused=True)[0]
        second.append(torch.zeros_like(u) if more is None else more[:, k])
    return u, first, torch.stack(second, 1)


def model(equation: Equation, *, bias: bool = True) -> Residuals:
    return Residuals(net(equation.dimension, bias=bias), equation).double()


def points(equation: Equation, inside: int = 7, on: int = 4) -> Tensor:
    """Rows of random points; "boundary" points need not lie on one for what is tested here."""
    d = equation.dimension
    x, b = normal(inside, d, seed=1), normal(on, d, seed=2)
    return as_rows(x, equation.source(x), b, equation.solution(b))
