"""Readers of complex weights: rows, blocks, and training by every kind of method."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.model.partition import partition
from curvlab.model.readers.shipped import SHIPPED
from curvlab.testing import reference
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import normal
from curvlab_operators.fourier_operator import FourierOperator
from curvlab_operators.mode_reader import ModeReader
from curvlab_operators.relative_norms import RelativeL2
from curvlab_operators.spectral_convolution import SpectralConvolution

READERS = (ModeReader(), *SHIPPED)


def made(dtype: torch.dtype = torch.float64) -> tuple[FourierOperator, Tensor, Tensor]:
    torch.manual_seed(0)
    model = FourierOperator(1, 1, width=3, modes=(2, 2), layers=2).to(dtype)
    return model, normal(4, 1, 6, 6, seed=1).to(dtype), normal(4, 1, 6, 6, seed=2).to(dtype)


def test_every_mode_is_a_block_and_nothing_is_left() -> None:
    model, _, _ = made()
    blocks = partition(model, lambda name: True, readers=READERS)
    assert all(b.is_layer for b in blocks.members)
    modes = [b for b in blocks.members if b.complex]
    assert [b.name for b in modes[:2]] == [f"layers.0.spectral.mixing.weight[{k}:{k + 1}]" for k in (0, 1)]
    assert {tuple(b.shape) for b in modes} == {(3, 6)}
    assert len(modes) == 2 * 6
    theta = blocks.read()
    expected = {n: p.detach().clone() for n, p in model.named_parameters()}
    blocks.subtract_(theta, 2.0)
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), -expected[name])


def test_of_one_layer_and_squared_errors_modes_are_independent_and_b_kron_a_is_exact() -> None:
    """Parseval: the dense Gauss–Newton matrix is ``c I ⊗ A_k`` on each mode k, and zero between modes."""
    torch.manual_seed(0)
    layer, x = SpectralConvolution(2, 3, (4,)).double(), normal(5, 2, 9, seed=3)
    blocks = partition(layer, lambda name: True, readers=READERS)
    truth = reference.ggn(layer, nn.MSELoss(), x, normal(5, 3, 9, seed=4), blocks)
    inputs: list[Tensor] = []
    layer.mixing.register_forward_hook(lambda m, args, y: inputs.append(args[0].detach()))
    layer(x)
    expected = torch.zeros_like(truth)
    for k, block in enumerate(blocks.members):
        a = ModeReader(mode=k).inputs(layer.mixing, inputs[0][:, k])
        a = a if k else a[:, :1]  # the imaginary part of mode 0 is in no output
        A = torch.einsum("nsi,nsj->ij", a, a) / 5
        scale = 2 / 27 * (1 if k == 0 else 2)  # squares of 3 × 9 numbers; a wave and its conjugate
        own = slice(*blocks.layout.offsets[block.name])
        expected[own, own] = scale * torch.kron(torch.eye(3).double(), A)
    assert_close(truth, expected, dimension=64, what="the dense matrix")


METHODS: dict[str, dict[str, Any]] = {
    "adamw": {},
    "sgd": {},
    "kfac": {"labels": "data"},
    "ekfac": {"labels": "data"},
    "singd": {},
    "ikfac": {},
    "foof": {},
    "soap": {},
    "shampoo": {},
    "kbfgs": {},
    "rs-kfac": {"labels": "data"},
    "hf-gn": {},
    "lbfgs": {},
    "lm": {},
    "smw-ngd": {},
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_treat_complex_weights_and_their_loss_falls(method: str) -> None:
    model, x, y = made(torch.float32)
    y = y - y.mean((2, 3), keepdim=True)
    loss = RelativeL2(squared=True)
    optimizer = curvlab.optimizer(method, model, **METHODS[method])
    treated = {row.parameter: row.treatment for row in optimizer.coverage()}
    assert all(treated[n] == method for n in treated if "mixing" in n), treated
    before = [p.detach().clone() for n, p in model.named_parameters() if "mixing" in n]
    objective = curvlab.objective(model, loss, x, y)
    start = float(objective.loss())
    for _ in range(8):
        optimizer.step(curvlab.objective(model, loss, x, y))
    assert float(objective.loss()) < start
    for p, old in zip((p for n, p in model.named_parameters() if "mixing" in n), before, strict=True):
        assert bool((p.real != old.real).any())
        assert bool((p.imag != old.imag).any())


@pytest.mark.parametrize("method", ["kfac", "singd", "soap"])
def test_a_plain_loop_in_two_backward_passes_is_that_in_one(method: str) -> None:
    models, knobs = [made()[0], made()[0]], METHODS[method]
    _, x, y = made()
    optimizers = [curvlab.optimizer(method, model, **knobs) for model in models]
    splits = ((slice(0, 4),), (slice(0, 1), slice(1, 4)))
    for _ in range(3):
        for model, optimizer, split in zip(models, optimizers, splits, strict=True):
            optimizer.zero_grad()
            for part in split:
                (nn.functional.mse_loss(model(x[part]), y[part], reduction="sum") / y.numel()).backward()
            optimizer.step()
    assert {row.treatment for row in optimizers[0].coverage()} == {method}
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10, msg=name)


def test_muon_leaves_them_to_the_fallback_in_words() -> None:
    rows = {row.parameter: row for row in curvlab.optimizer("muon", made()[0]).coverage()}
    row = rows["layers.0.spectral.mixing.weight"]
    assert (row.treatment, row.reason) == ("fallback", "complex parameter")
