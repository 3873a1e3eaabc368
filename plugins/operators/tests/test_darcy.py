"""Darcy's equation: the order of its solver, exact cases, and the data that it makes."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from curvlab.errors import DataError
from curvlab.tasks.draws import Normal
from curvlab_operators import darcy
from curvlab_operators.cosine_fields import at_centers, coefficients


def centers(n: int) -> tuple[Tensor, Tensor]:
    x = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return x[:, None].expand(n, n), x.expand(n, n)


def test_errors_fall_as_the_square_of_the_spacing_for_a_smooth_permeability() -> None:
    """u = sin πx sin 2πy with a = 2 + x y, of which f follows by hand."""
    errors = []
    for n in (16, 32, 64):
        x, y = centers(n)
        u = torch.sin(math.pi * x) * torch.sin(2 * math.pi * y)
        ux = math.pi * torch.cos(math.pi * x) * torch.sin(2 * math.pi * y)
        uy = 2 * math.pi * torch.sin(math.pi * x) * torch.cos(2 * math.pi * y)
        a = 2 + x * y
        f = 5 * math.pi**2 * a * u - (y * ux + x * uy)
        errors.append(float((darcy.solve(a[None], f[None])[0] - u).abs().max()))
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert min(orders) > 1.9, orders


def test_the_flux_through_a_jump_is_exact() -> None:
    """Where −a u' is constant, u is linear in each of two layers, and every face has that flux."""
    n = 8
    a = torch.where(centers(n)[0] < 0.5, 3.0, 12.0).double()
    x = centers(n)[0]
    u = torch.where(x < 0.5, x / 3, 0.5 / 3 + (x - 0.5) / 12)  # a u' = 1
    flux = darcy._Faces.of(a[None]).across_x[0] * (u[1:] - u[:-1]) / n  # over h², times h
    torch.testing.assert_close(flux, torch.ones_like(flux))


def test_the_operator_is_symmetric_and_a_constant_takes_one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    a, u, v = torch.rand(3, 9, 9, dtype=torch.float64).add_(0.1).unsqueeze(1).unbind(0)
    faces = darcy._Faces.of(a)
    assert float((faces.divergence(u) * v).sum()) == pytest.approx(float((faces.divergence(v) * u).sum()))
    monkeypatch.setattr(darcy, "MOST", 2)
    f = torch.ones(1, 8, 8, dtype=torch.float64)
    found = darcy.solve(torch.full_like(f, 5.0), f)
    torch.testing.assert_close(darcy._Faces.of(torch.full_like(f, 5.0)).divergence(found), f)


def test_what_cannot_be_solved_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    f = torch.ones(1, 8, 8, dtype=torch.float64)
    with pytest.raises(DataError, match="needs positive a; the smallest is 0"):
        darcy.solve(torch.zeros_like(f), f)
    monkeypatch.setattr(darcy, "MOST", 1)
    with pytest.raises(DataError, match="after 1 steps of conjugate gradients"):
        darcy.solve(at_centers(coefficients(Normal(0), 1, 8, tau=3, alpha=1), 8).exp(), f)


def test_fields_have_their_variance_and_are_one_function_on_every_grid() -> None:
    c = coefficients(Normal(0), 400, 4, tau=3.0, alpha=2.0)
    spread = c.std(0)
    k = torch.arange(4).double()
    expected = 1 / (math.pi**2 * (k[:, None] ** 2 + k**2) + 9)
    assert float((spread / expected - 1).abs().max()) < 6 / (2 * 400) ** 0.5
    coarse, fine = at_centers(c[:2], 8), at_centers(c[:2], 24)
    torch.testing.assert_close(fine[:, 1::3, 1::3], coarse)  # the middle one of three cells
