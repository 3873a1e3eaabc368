"""Reference solutions solve their equations, to the digits that they promise, on the grid and between."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from curvlab.errors import ConfigError, DataError, UsageError
from curvlab_pinn.references.allen_cahn import allen_cahn_solution
from curvlab_pinn.references.burgers import NU, burgers_at, burgers_solution
from curvlab_pinn.references.etdrk4 import ETDRK4
from curvlab_pinn.references.grid import places, wavenumbers
from curvlab_pinn.references.kdv import kdv_solution
from curvlab_pinn.references.preparation import AllenCahnReference, BurgersReference, KdVReference
from curvlab_pinn.references.solution import Solution

SOLVERS: dict[str, Callable[..., Solution]] = {
    "burgers": cache(burgers_solution),
    "allen-cahn": cache(allen_cahn_solution),
    "kdv": cache(kdv_solution),
}

INITIAL: dict[str, Callable[[Tensor], Tensor]] = {
    "burgers": lambda x: -torch.sin(math.pi * x),
    "allen-cahn": lambda x: x.square() * torch.cos(math.pi * x),
    "kdv": lambda x: torch.cos(math.pi * x),
}

#: u_t from u, u_x, u_xx and u_xxx
RIGHT: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "burgers": lambda u, d, dd, ddd: NU * dd - u * d,
    "allen-cahn": lambda u, d, dd, ddd: 1e-4 * dd + 5 * u - 5 * u**3,
    "kdv": lambda u, d, dd, ddd: -u * d - 0.022**2 * ddd,
}

every = pytest.mark.parametrize("name", SOLVERS)


def drawn(count: int) -> Tensor:
    """Points (t, x), a third of them near x = 0 and a third near x = 1, where solutions are steep."""
    t, x = torch.rand(2, count, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    third = count // 3
    x = 2 * x - 1
    x[:third] *= 0.01
    x[third : 2 * third] = 1 - t[third : 2 * third] * 0.01
    return torch.stack([t.roll(1), x], 1)


@every
def test_a_solution_solves_its_equation(name: str) -> None:
    # from the sixteenth time on, when diffusion has smoothed a kink; central differences of order 12 in time
    found = SOLVERS[name]()
    n, h = len(found.x), float(found.t[1])
    weights = [(-1) ** (j + 1) * math.comb(12, 6 - j) / (math.comb(12, 6) * j) for j in range(1, 7)]
    rows = torch.arange(16, len(found.t) - 6, 8)
    rate = sum(w * (found.u[rows + j] - found.u[rows - j]) / h for j, w in enumerate(weights, 1))
    k = wavenumbers(n)
    derivatives = [torch.fft.irfft((1j * k) ** p * torch.fft.rfft(found.u[rows]), n) for p in range(4)]
    residual = rate - RIGHT[name](*derivatives)
    assert float(residual.abs().max()) <= 1e-8 * float(rate.abs().max())


@every
def test_a_solution_starts_where_it_should(name: str) -> None:
    x = drawn(300)[:, 1]
    found = SOLVERS[name]().at(torch.stack([torch.zeros_like(x), x], 1))
    assert float((found - INITIAL[name](x)).abs().max()) <= 1e-9


@pytest.mark.parametrize(
    ("name", "finer"),
    [
        pytest.param("allen-cahn", (2304, 38, 60), id="allen-cahn"),
        pytest.param("kdv", (432, 38, 800), id="kdv", marks=pytest.mark.grid),
    ],
)
def test_a_finer_solution_is_the_same_on_its_own_grid(name: str, finer: tuple[int, int, int]) -> None:
    # 38 times and 2304 or 432 points: nearly all of them lie between those of the coarser grid
    coarse, fine = SOLVERS[name](), SOLVERS[name](*finer)
    points = torch.cartesian_prod(fine.t, fine.x[::7])
    difference = coarse.at(points) - fine.u[:, ::7].flatten()
    assert float(difference.abs().max()) <= 1e-9


def test_burgers_is_what_gauss_hermite_quadrature_finds() -> None:
    points = drawn(300)
    t, x = points.numpy().T
    z, w = np.polynomial.hermite.hermgauss(160)
    angle = np.pi * (x[:, None] - np.sqrt(4 * NU * t)[:, None] * z)
    w = w * np.exp(-(np.cos(angle) + 1) / (2 * np.pi * NU) + 1 / (2 * np.pi * NU))
    expected = -(w * np.sin(angle)).sum(1) / w.sum(1)
    found = burgers_at(points)
    assert np.abs(found.numpy() - expected).max() <= 1e-12


def test_burgers_is_what_a_fourier_series_finds() -> None:
    n, steps = 2048, 6000
    x, k = places(n), wavenumbers(n)
    scheme = ETDRK4.of(-NU * k.square(), 1 / steps)

    def nonlinear(now: float, v: Tensor) -> Tensor:
        return -0.5j * k * torch.fft.rfft(torch.fft.irfft(v, n).square())

    ends = scheme.march(torch.fft.rfft(-torch.sin(math.pi * x)), nonlinear, 4, steps // 3)
    for third, v in enumerate(ends):
        found = burgers_at(torch.stack([torch.full_like(x, third / 3), x], 1))
        assert float((found - torch.fft.irfft(v, n)).abs().max()) <= 1e-10


@pytest.mark.parametrize(("nu", "tolerance"), [(1.0, 1e-9), (0.1, 1e-12), (NU, 1e-11), (0.01, 1e-12)])
def test_burgers_between_grid_points_is_what_the_quadrature_finds(nu: float, tolerance: float) -> None:
    points = drawn(999)
    assert float((burgers_solution(nu).at(points) - burgers_at(points, nu)).abs().max()) <= tolerance


def test_kdv_conserves_mass_momentum_and_energy() -> None:
    u = SOLVERS["kdv"]().u
    slope = torch.fft.irfft(1j * wavenumbers(u.shape[1]) * torch.fft.rfft(u), u.shape[1])
    for density in (u, u.square(), u**3 / 3 - 0.022**2 * slope.square()):
        kept = density.mean(1)
        assert float((kept - kept[0]).abs().max()) <= 1e-9


def test_a_solution_is_periodic_and_known_for_its_times_only() -> None:
    found, points = SOLVERS["allen-cahn"](), drawn(99)
    moved = points + torch.tensor([0.0, 2.0], dtype=torch.float64)
    assert float((found.at(points) - found.at(moved)).abs().max()) <= 1e-11
    assert found.at(points[:0]).shape == (0,)
    for t in (-0.1, 1.1, math.nan):
        for at in (found.at, burgers_at):
            with pytest.raises(UsageError, match="0 ≤ t ≤ 1"):
                at(torch.tensor([[t, 0.0]], dtype=torch.float64))
    with pytest.raises(UsageError, match="nu = 0.0 must be ≥ 0.001"):
        burgers_solution(0.0)


@every
def test_a_file_holds_the_solution(name: str, tmp_path: Path) -> None:
    found, file = SOLVERS[name](), tmp_path / "file"
    found.save(file)
    again = Solution.load(file, found.equation, found.settings)
    assert torch.equal(again.at(drawn(99)), found.at(drawn(99)))
    assert again.kink == found.kink


def test_a_file_of_another_solution_is_refused(tmp_path: Path) -> None:
    found, file = burgers_solution(0.1), tmp_path / "file"
    found.save(file)
    for equation, settings, fault in (
        ("kdv", {"nu": 0.1}, "equation 'burgers', expected 'kdv'"),
        ("burgers", {"nu": 0.2}, "settings {'nu': 0.1}, expected {'nu': 0.2}"),
    ):
        with pytest.raises(DataError, match=fault):
            Solution.load(file, equation, settings)
    for bad in (
        replace(found, t=found.t[1:]),
        replace(found, u=found.u.float()),
        replace(found, u=found.u / 0),
    ):
        bad.save(file)
        with pytest.raises(DataError, match="damaged"):
            Solution.load(file, "burgers", {"nu": 0.1})
    for content in (b"", b"text", file.read_bytes()[:-9]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"cannot be read.*curvlab tasks prepare burgers"):
            Solution.load(file, "burgers", {"nu": 0.1})
    with pytest.raises(DataError, match="cannot be read"):
        Solution.load(tmp_path / "missing", "burgers", {"nu": 0.1})


def test_a_preparation_writes_a_solution_once(tmp_path: Path) -> None:
    lines: list[str] = []
    to, reference = tmp_path / "new" / "folder", BurgersReference(0.1)
    reference.run(to, lines.append)
    assert lines[-1].startswith(f"{to / 'burgers.safetensors'}: 257 times by 64 points")
    reference.run(to, lines.append)
    assert lines[-1].endswith("holds this solution already")
    assert torch.equal(reference.solution(str(to)).u, reference.solution().u)
    with pytest.raises(DataError, match="expected {'nu': 0.2}"):
        BurgersReference(0.2).run(to, lines.append)
    with pytest.raises(DataError, match="no empty folder"):
        KdVReference().run(to, lines.append)
    with pytest.raises(ConfigError, match="nu"):
        BurgersReference(0.0)


@pytest.mark.parametrize("reference", [BurgersReference(), AllenCahnReference(), KdVReference()])
def test_a_preparation_names_the_solution_that_it_writes(
    reference: BurgersReference | AllenCahnReference | KdVReference,
) -> None:
    found = SOLVERS[reference.equation]()
    assert (found.equation, dict(found.settings)) == (reference.equation, dict(reference.settings()))
