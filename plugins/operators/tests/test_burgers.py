"""Burgers' equation: its solver beside the exact solution, its order, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from curvlab.errors import DataError
from curvlab.tasks.draws import Normal
from curvlab_operators.burgers import at_points, solve
from curvlab_operators.burgers_data import BurgersData, waves

NU, TIME, GRID = 0.02, 0.5, 64


def start(points: int) -> Tensor:
    """Coefficients of sin 2πx."""
    found = torch.zeros(1, points // 2 + 1, dtype=torch.complex128)
    found[0, 1] = -0.5j
    return found


def exact() -> Tensor:
    """By the transformation of Cole and Hopf: u = −2ν φ'/φ, where φ solves the heat equation."""
    points = 1024
    x = torch.arange(points, dtype=torch.float64) / points
    phi = torch.fft.rfft(torch.exp((torch.cos(2 * math.pi * x) - 1) / (4 * math.pi * NU)))
    k = 2 * math.pi * torch.arange(points // 2 + 1, dtype=torch.float64)
    phi = phi * torch.exp(-NU * k.square() * TIME)
    u = -2 * NU * torch.fft.irfft(1j * k * phi) / torch.fft.irfft(phi)
    return u[:: points // GRID]


def test_the_solution_is_that_of_cole_and_hopf() -> None:
    found = at_points(solve(start(256), NU, TIME, 300), GRID)[0]
    assert float((found - exact()).abs().max()) < 1e-7


def test_errors_fall_with_the_fourth_power_of_the_step() -> None:
    errors = [
        float((at_points(solve(start(256), NU, TIME, n), GRID)[0] - exact()).abs().max()) for n in (40, 80)
    ]
    assert 12 < errors[0] / errors[1] < 20, errors


def test_mean_is_kept_and_energy_falls() -> None:
    v = waves(Normal(0), 3)
    v[:, 0] = 0.3
    after = solve(v, 0.05, 0.2, 120)
    torch.testing.assert_close(after[:, 0], v[:, 0])
    assert bool((after.abs().square().sum(1) < v.abs().square().sum(1)).all())


def test_points_of_a_series_are_those_of_the_transform() -> None:
    v = waves(Normal(1), 2)
    torch.testing.assert_close(at_points(v, 256), torch.fft.irfft(v, norm="forward"))
    torch.testing.assert_close(at_points(v, 64), at_points(v, 256)[:, ::4])


def test_what_is_not_resolved_or_not_finite_is_refused() -> None:
    with pytest.raises(DataError, match="the highest of 21 wave numbers"):
        solve(start(64), 0.002, 0.5, 600)
    with pytest.raises(DataError, match="not finite after 4 steps"):
        solve(1e3 * start(256), 0.01, 0.5, 4)


def test_a_seed_gives_the_same_functions_on_every_grid() -> None:
    coarse, fine = (BurgersData(grid=g, size=2, validation_size=1, time=0.1).made() for g in (32, 64))
    torch.testing.assert_close(fine.outputs[..., ::2], coarse.outputs)
