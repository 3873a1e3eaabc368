"""Reaction and diffusion on the unit square: -Δu + u³ = f, with u = 0 on the walls."""

import math

import torch

from curvlab import pde


def solution(x):
    """The solution, to compare with."""
    return torch.sin(math.pi * x[:, 0]) * torch.sin(math.pi * x[:, 1])


def equation(u, x):
    """By how much u misses the equation at points x."""
    f = 2 * math.pi**2 * solution(x) + solution(x) ** 3
    return -u.laplacian() + u() ** 3 - f


problem = pde.Problem(
    coordinates={"x": (0, 1), "y": (0, 1)},
    terms=[
        pde.Term(equation, pde.Inside(900)),
        pde.Term(lambda u, x: u(), pde.Faces(120), weight=10, name="walls"),
    ],
    reference=solution,
)
