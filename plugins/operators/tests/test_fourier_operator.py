"""Spectral convolutions and the Fourier neural operator: what they compute, on any grid, in any precision."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab_operators import modes as kept
from curvlab_operators.fourier_operator import FourierOperator
from curvlab_operators.kept_modes import analysis, synthesis
from curvlab_operators.mode_mixing import ModeMixing
from curvlab_operators.paired_product import paired_product
from curvlab_operators.spectral_convolution import SpectralConvolution
from curvlab_operators.spectral_precision import spectral_precision
from curvlab_operators.stabilizer import stabilized

#: of a loss, so that its gradients stay in float16's range of full precision
SCALE = 1024.0

GRIDS = [((4,), (9,)), ((3,), (8,)), ((2, 3), (4, 5)), ((3, 2), (5, 6))]


def summed(layer: SpectralConvolution, x: Tensor) -> Tensor:
    """The layer by sums over all points and modes: no FFT."""
    grid, weight = x.shape[2:], layer.mixing.weight.detach()
    points = torch.cartesian_prod(*(torch.arange(n).double() / n for n in grid)).view(-1, len(grid))
    y = torch.zeros(x.shape[0], weight.shape[1], len(points), dtype=torch.complex128)
    for W, k in zip(weight, kept.wave_numbers(layer.modes), strict=True):
        wave = torch.exp(2j * math.pi * (points @ torch.tensor(k, dtype=torch.float64)))
        c = (x.flatten(2) * wave.conj()).sum(2) / len(points)
        once = 1.0 if k[-1] == 0 else 2.0  # and its conjugate at −k
        y += once * (c @ W.mT).unsqueeze(2) * wave
    return y.real.view(x.shape[0], -1, *grid)


@pytest.mark.parametrize(("modes", "grid"), GRIDS, ids=str)
def test_a_layer_is_its_sum_over_modes(modes: tuple[int, ...], grid: tuple[int, ...]) -> None:
    layer, x = SpectralConvolution(2, 3, modes).double(), normal(2, 2, *grid, seed=1)
    assert_close(layer(x), summed(layer, x), dimension=64, what="the layer")


def test_it_commutes_with_translations_and_acts_alike_on_every_grid() -> None:
    layer = SpectralConvolution(1, 1, (3, 3)).double()

    def sampled(n: int) -> Tensor:
        t = 2 * math.pi * torch.arange(n, dtype=torch.float64) / n
        return (torch.sin(t)[:, None] * torch.cos(2 * t) + torch.cos(2 * t)[:, None]).view(1, 1, n, n)

    coarse, fine = layer(sampled(8)), layer(sampled(16))
    torch.testing.assert_close(fine[..., ::2, ::2], coarse)
    x = normal(1, 1, 8, 8, seed=2)
    torch.testing.assert_close(layer(x.roll((3, 1), (2, 3))), layer(x).roll((3, 1), (2, 3)))


def test_converting_a_layer_keeps_imaginary_parts_and_16_bits_leave_them() -> None:
    mixing = ModeMixing(2, 3, 4)
    before = mixing.weight.detach().clone()
    assert mixing.to(torch.float64).weight.dtype == torch.complex128
    assert torch.equal(mixing.float().weight, before)
    assert mixing.bfloat16().weight.dtype == torch.complex64
    assert torch.equal(copy.deepcopy(mixing).weight, before)


@pytest.mark.parametrize("precision", ["mixed", "half"])
def test_rounding_is_that_of_float16_and_gradients_arrive(precision: Any) -> None:
    torch.manual_seed(0)
    model, x = FourierOperator(1, 1, width=6, modes=(3, 3), stabilizer="tanh"), normal(3, 1, 12, 12, seed=3)
    x = x.float()
    exact = model(x)
    expected = torch.autograd.grad(SCALE * exact.square().mean(), list(model.parameters()))
    with spectral_precision(precision):
        found = model(x)
    assert found.dtype == torch.float32
    error = float((found - exact).detach().norm() / exact.detach().norm())
    assert 1e-6 < error < 2e-3, error  # half a unit of float16 is 5e-4
    gradients = torch.autograd.grad(SCALE * found.square().mean(), list(model.parameters()))
    for name, g, true in zip(dict(model.named_parameters()), gradients, expected, strict=True):
        assert float((g - true).norm()) < 1e-2 * float(true.norm()), name
    assert torch.equal(model(x), exact), "the context must end"


@pytest.mark.parametrize("stabilizer", ["none", "tanh"])
def test_half_overflows_without_the_stabilizer_and_not_with_it(stabilizer: Any) -> None:
    """The sum over 32 × 32 points of a signal around 100 is 102,400; float16 ends at 65,504."""
    layer = SpectralConvolution(1, 1, (4, 4), stabilizer=stabilizer)
    x = 100.0 + normal(1, 1, 32, 32, seed=4).float()
    finite = {}
    for precision in ("full", "mixed", "half"):
        layer.precision = precision  # type: ignore[assignment]
        finite[precision] = bool(layer(x).isfinite().all())
    assert finite == {"full": True, "mixed": True, "half": stabilizer == "tanh"}


def test_the_stabilizer_is_tanh_keeps_its_input_and_differentiates_twice() -> None:
    x = normal(5, seed=5).requires_grad_()
    torch.testing.assert_close(stabilized(x), x.tanh())
    assert torch.autograd.gradcheck(stabilized, (x,), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(stabilized, (x,))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        stabilized(x)
    assert [t.data_ptr() for t in saved] == [x.data_ptr()] * len(saved)


def test_transforms_keep_no_signal_and_have_all_derivatives() -> None:
    grid, modes = (5, 6), (2, 3)
    x, y = normal(2, 1, *grid, seed=9).requires_grad_(), normal(2, 1, 9, 2, seed=10).requires_grad_()

    def back(pairs: Tensor) -> Tensor:
        return synthesis(torch.view_as_complex(pairs), grid, modes)

    def forth(signal: Tensor) -> Tensor:
        return torch.view_as_real(analysis(signal, modes))

    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):  # type: ignore[func-returns-value]
        forth(x), back(y)
    assert not saved
    for transform, at in ((forth, x), (back, y)):
        assert torch.autograd.gradcheck(transform, (at,), check_forward_ad=True)
        assert torch.autograd.gradgradcheck(transform, (at,))


def test_products_of_pairs_are_complex_products_with_all_derivatives() -> None:
    x, w = normal(2, 3, 4, 2, seed=7).requires_grad_(), normal(2, 4, 5, 2, seed=8).requires_grad_()
    expected = torch.view_as_real(torch.bmm(torch.view_as_complex(x), torch.view_as_complex(w)))
    torch.testing.assert_close(paired_product(x, w), expected)
    assert torch.autograd.gradcheck(paired_product, (x, w), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(paired_product, (x, w))


@pytest.mark.parametrize("cast", [torch.bfloat16, torch.float16])
def test_autocast_around_the_derivatives_changes_no_bit_of_the_layer(cast: torch.dtype) -> None:
    """A training step differentiates under autocast; bfloat16 would round products to 8 bits."""
    layer, x = SpectralConvolution(3, 3, (4,), precision="mixed"), normal(3, 3, 16, seed=6).float()
    y = layer(x)
    alone = torch.autograd.grad(SCALE * y.square().mean(), list(layer.parameters()))
    with torch.autocast("cpu", dtype=cast):
        y = layer(x)
        under = torch.autograd.grad(SCALE * y.square().mean(), list(layer.parameters()))
    assert all(map(torch.equal, alone, under))


def test_under_autocast_signals_are_in_16_bits_and_transforms_are_not() -> None:
    torch.manual_seed(0)
    model, x = FourierOperator(1, 1, width=6, modes=(3,)), normal(3, 1, 16, seed=6).float()
    exact, dtypes = model(x), []
    for layer in model.layers:
        layer.register_forward_hook(lambda m, a, y: dtypes.append(y.dtype))
        layer.spectral.mixing.register_forward_hook(lambda m, a, y: dtypes.append(y.dtype))  # type: ignore[union-attr]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model(x)
    assert dtypes == [torch.float32, torch.bfloat16] * 4
    error = float((found - exact).detach().norm() / exact.detach().norm())
    assert error < 0.03  # bfloat16 keeps 8 bits


def test_a_grid_that_is_too_coarse_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"a grid of 4 × 9 points is too coarse for modes = \[3, 3\]"):
        SpectralConvolution(1, 1, (3, 3))(torch.zeros(1, 1, 4, 9))
    with pytest.raises(ValueError, match="expected one to three numbers"):
        FourierOperator(1, 1, width=4, modes=())
