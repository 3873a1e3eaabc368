"""Relative L² and H¹ errors: what the norms are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from curvlab.errors import ConfigError
from curvlab.testing.problems import normal
from curvlab_operators.relative_norms import RelativeH1, RelativeL2


@pytest.mark.parametrize("squared", [False, True])
def test_an_error_of_a_tenth_of_the_target_is_a_tenth(squared: bool) -> None:
    y = normal(4, 2, 5, 3, seed=1)
    for loss in (RelativeL2(squared=squared), RelativeH1(squared=squared)):
        assert float(loss.mean(1.1 * y, y)) == pytest.approx(0.01 if squared else 0.1)
        assert torch.allclose(loss.of_examples(1.1 * y, y), torch.full((4,), 0.1, dtype=y.dtype))


def test_h1_of_a_wave_converges_to_the_integral_of_its_square_and_slope() -> None:
    """‖sin kx‖² in H¹ is that in L² times 1 + k²; differences err by k² h²/12 of the slope."""
    errors = []
    for n in (32, 64):
        x = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
        one, three = torch.sin(x).view(1, 1, n), torch.sin(3 * x).view(1, 1, n)
        loss = RelativeH1(periodic=True, length=2 * math.pi)
        errors.append(float(loss.mean(one + three, one)) / math.sqrt((1 + 9) / (1 + 1)) - 1)
    assert abs(errors[1]) < 9 * (2 * math.pi / 64) ** 2 / 24 * 1.05
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.05)


def test_differences_that_are_not_periodic_see_no_step_between_the_ends() -> None:
    ramp = torch.linspace(0, 1, 8, dtype=torch.float64).view(1, 1, 8)
    inside, around = (RelativeH1(periodic=p).forms(ramp)[0, 8:] for p in (False, True))
    assert torch.allclose(inside, torch.full((7,), 8 / 7, dtype=torch.float64))
    assert float(around[-1]) == pytest.approx(-8.0)


def test_an_exact_output_has_no_gradient_and_no_curvature() -> None:
    y = normal(2, 1, 4, seed=2)
    loss, f = RelativeH1(), y.clone().requires_grad_()
    (g,) = torch.autograd.grad(loss.mean(f, y), f)
    assert not bool(g.any())
    assert not bool(loss.hessian_product(y, y, 1.0, normal(2, 1, 4, seed=3)).any())


BAD: list[tuple[Any, tuple[int, ...], tuple[int, ...], str]] = [
    (RelativeL2(), (3, 1, 4), (3, 4), r"outputs have shape \(3, 1, 4\), targets \(3, 4\)"),
    (RelativeH1(), (3, 4), (3, 4), r"expected \[n, c, \*grid\]"),
]


@pytest.mark.parametrize(("loss", "f", "y", "says"), BAD)
def test_other_shapes_are_refused(loss: Any, f: tuple[int, ...], y: tuple[int, ...], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        loss.require(torch.zeros(f), torch.zeros(y))
