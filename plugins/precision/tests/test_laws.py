"""Five laws of low precision, on one ill-conditioned layer: what breaks, and what our parts do instead."""

from __future__ import annotations

import math

import pytest
import torch

from curvlab.parts.inverses import Cholesky, Eigen
from curvlab.precision.full import Full
from curvlab.protocols.backend import Backend, Rounding
from curvlab.protocols.preconditioner import Inverse
from curvlab_precision.half import Bfloat16, Float16
from plugins.precision.tests.experiments import (
    Unchecked,
    definiteness,
    directions,
    moments,
    moved,
    negative_diagonals,
    squared_rows,
)
from tests.grids import thinned

#: KFAC with its factors in bfloat16, by rounding
HALF_FACTORS: dict[str, Bfloat16] = {
    how: Bfloat16(factors="bfloat16", averages=how) for how in ("nearest", "stochastic")
}
#: the half of bfloat16's unit in the last place at 1, by which rounding to nearest changes a number at most
HALF_UNIT = 2.0**-8


# T1: a factor that is stored in bfloat16 is not positive definite


@pytest.mark.parametrize("how", HALF_FACTORS)
@pytest.mark.parametrize(("condition", "negative", "shift"), [(1e4, 1, 1e-4), (1e6, 5, 3e-4)])
def test_a_factor_in_bfloat16_loses_its_small_eigenvalues(
    how: str, condition: float, negative: int, shift: float
) -> None:
    found = definiteness(HALF_FACTORS[how], condition)
    assert found.negative >= negative
    assert found.shift >= shift


@pytest.mark.parametrize("backend", [Full(), Bfloat16()], ids=["float32", "rows in bfloat16"])
@pytest.mark.parametrize("condition", [1e4, 1e6])
def test_a_factor_in_float32_keeps_them_of_rows_in_bfloat16_too(backend: Backend, condition: float) -> None:
    found = definiteness(backend, condition)
    assert found.negative == 0
    assert found.shift <= 1e-6


# T2: an average that is rounded to the nearest number stops


@pytest.mark.parametrize("decay", [0.95, 0.99, 0.999])
def test_a_rounded_average_stops_where_its_increments_are_half_a_unit(decay: float) -> None:
    """Between 1 and 2 the unit is 1/128: it rests once (1 − β)(2 − m) is at most half of that."""
    rest = max(2 - HALF_UNIT / (1 - decay), 1.0)
    assert moved(decay, "nearest") == pytest.approx(rest, abs=2 * HALF_UNIT)


@pytest.mark.parametrize("decay", [0.95, 0.99, 0.999])
def test_rounded_by_chance_it_arrives_as_one_in_float32_does(decay: float) -> None:
    """Mean of 4,096: each is off by less than a unit of about √((1 − β)/2) steps' noise."""
    exact = moved(decay, "nearest", torch.float32)
    assert exact == pytest.approx(2.0, abs=1e-3)
    assert moved(decay, "stochastic") == pytest.approx(exact, abs=HALF_UNIT / 2)


# T3: reduced products in an eigenbasis have the wrong sign


def test_the_diagonal_in_the_eigenbasis_is_negative_by_products_in_bfloat16() -> None:
    assert negative_diagonals(torch.float64) == 0
    assert negative_diagonals(torch.bfloat16) > 0


@pytest.mark.parametrize("backend", [Bfloat16(), *HALF_FACTORS.values()], ids=["float32", *HALF_FACTORS])
def test_means_of_squares_in_the_basis_are_not(backend: Backend) -> None:
    found = moments(backend)
    assert bool((found > 0).all())
    assert bool(torch.isfinite(found).all())


# T4: directions on an ill-conditioned layer


@pytest.mark.parametrize(
    ("how", "damping"),
    thinned(HALF_FACTORS, (1e-3, 1e-4), few={("nearest", 1e-4), ("stochastic", 1e-3)}),
)
def test_kfac_with_factors_in_bfloat16_ascends(how: str, damping: float) -> None:
    ascending = {1e-3: 0.1, 1e-4: 0.4}[damping]
    found = directions(Unchecked(), HALF_FACTORS[how], damping)
    assert found.ascending > ascending
    assert found.cosine < 0.3


@pytest.mark.parametrize("how", HALF_FACTORS)
def test_our_inverse_refuses_such_factors(how: str) -> None:
    """A Cholesky factor does not exist: the engine raises the damping, and says so."""
    found = directions(Cholesky(), HALF_FACTORS[how])
    assert found.failed > 0.9
    assert found.ascending == 0


@pytest.mark.parametrize("how", HALF_FACTORS)
def test_with_eigenvalues_cut_at_zero_it_descends(how: str) -> None:
    found = directions(Eigen(), HALF_FACTORS[how])
    assert found.failed == found.ascending == 0


@pytest.mark.parametrize("inverse", [Cholesky(), Eigen(), Unchecked()], ids=["cholesky", "eigen", "lu"])
def test_kfac_with_factors_in_float32_on_rows_in_bfloat16_is_exact(inverse: Inverse) -> None:
    found = directions(inverse, Bfloat16())
    assert found.failed == found.ascending == 0
    assert found.cosine > 0.9999


@pytest.mark.parametrize(
    ("how", "damping"),
    thinned(("nearest", "stochastic"), (1e-3, 1e-4), few={("nearest", 1e-4), ("stochastic", 1e-3)}),
)
def test_ikfac_in_bfloat16_throughout_never_ascends(how: Rounding, damping: float) -> None:
    found = directions(None, Bfloat16(averages=how), damping)
    assert found.failed == found.ascending == 0


def test_at_its_damping_ikfac_in_bfloat16_goes_where_it_goes_in_float32() -> None:
    """K's own way to the inverse root is most of what is missing to the truth, in both."""
    exact = directions(None, Full()).cosine
    assert directions(None, Bfloat16()).cosine == pytest.approx(exact, abs=0.01)


# T5: the range of float16


def test_squares_of_small_gradients_and_of_scaled_ones_leave_float16() -> None:
    small, scaled = torch.tensor([1e-4, 0.01 * 2.0**16], dtype=torch.float16).square().tolist()
    assert small == 0.0
    assert scaled == math.inf


@pytest.mark.parametrize("size", [1e-4, 0.01 * 2.0**16 / 4])
def test_factors_of_rows_in_float16_are_summed_in_float32(size: float) -> None:
    assert squared_rows(Float16(), size) == pytest.approx(1.0, rel=0.02)
