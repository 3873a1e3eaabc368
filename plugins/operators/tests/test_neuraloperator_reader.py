"""The reader of neuraloperator's spectral convolutions, by themselves and inside its FNO."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import curvlab
from curvlab.testing.conformance import LayerConformance
from curvlab.testing.conformance.check import Skipped, check
from curvlab.testing.layers import read, some_loss
from curvlab.testing.problems import normal
from curvlab_operators.neuraloperator_reader import NeuralOperatorReader
from curvlab_operators.relative_norms import RelativeL2

pytest.importorskip("neuralop", reason="a package that it needs asks for Python 3.11")

from neuralop.layers.spectral_convolution import SpectralConv
from neuralop.models import FNO


class TestSuite(LayerConformance):
    """In float64, for which the package's ``torch.cfloat`` must mean another dtype."""

    @pytest.fixture(autouse=True)
    def _wide(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "cfloat", torch.complex128)

    def make(self) -> NeuralOperatorReader:
        return NeuralOperatorReader()

    def specimens(self) -> Any:
        for modes, shape in (((4,), (3, 2, 9)), ((3, 4), (2, 2, 5, 6))):
            yield SpectralConv(2, 3, modes), (torch.randn(shape),)
        # an even number of points, whose last mode is its own conjugate; another norm
        yield SpectralConv(1, 2, (2, 4), fft_norm="ortho"), (torch.randn(2, 1, 4, 4),)

    @check()
    def check_float32(self) -> None:
        """Below, without the other dtype."""
        raise Skipped("torch.cfloat is of float64 here")


@pytest.mark.parametrize("grid", [(6, 6), (5, 7)], ids=str)
def test_rows_in_float32_add_up_to_the_gradient(grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = SpectralConv(2, 3, (4, 4)), normal(3, 2, *grid, seed=3).float()
    blocks, tape, output = read(layer, (x,), [NeuralOperatorReader()])
    (true,) = torch.autograd.grad(some_loss(output), [layer.weight.tensor], retain_graph=True)
    vector = blocks.layout.zeros(like=blocks.like)
    for call, g in zip(tape.calls, torch.autograd.grad(some_loss(output), tape.edges), strict=True):
        vector[call.block.name].add_(call.gradient(g)[0])
    found = blocks.assembled(vector)["weight.tensor"]
    assert float((found - true).norm()) < 1e-5 * float(true.norm())


class Doubled(SpectralConv):
    def forward(self, x: Tensor, output_shape: Any = None) -> Tensor:
        return 2 * super().forward(x, output_shape)


@pytest.mark.parametrize("method", ["kfac", "singd", "soap", "adamw"])
def test_its_fno_is_trained(method: str) -> None:
    torch.manual_seed(0)
    model = FNO(n_modes=(4, 4), hidden_channels=4, in_channels=1, out_channels=1, n_layers=2)
    x, y = normal(4, 1, 8, 8, seed=1).float(), normal(4, 1, 8, 8, seed=2).float()
    loss = RelativeL2(squared=True)
    optimizer = curvlab.optimizer(method, model, **({"labels": "data"} if method == "kfac" else {}))
    treated = {row.parameter: row.treatment for row in optimizer.coverage()}
    weights = [n for n in treated if n.endswith("weight.tensor")]
    assert len(weights) == 2
    assert all(treated[n] == method for n in weights), treated
    objective = curvlab.objective(model, loss, x, y)
    start = float(objective.loss())
    for _ in range(5):
        optimizer.step(curvlab.objective(model, loss, x, y))
    assert float(objective.loss()) < start


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (SpectralConv(2, 2, (2, 2), fno_block_precision="half"), "fno_block_precision = 'half' is not read"),
        (SpectralConv(2, 2, (2, 2), separable=True), "separable = True is not read"),
        (SpectralConv(2, 2, (2, 2), factorization="tucker", rank=0.5), "weight in factors (TuckerTensor)"),
        (Doubled(2, 2, (2, 2)), "Doubled overrides SpectralConv.forward"),
        (nn.Linear(2, 2), ""),
    ],
    ids=["half", "separable", "tucker", "subclass", "linear"],
)
def test_what_it_does_not_read_it_refuses_in_words(module: nn.Module, says: str) -> None:
    refusal = NeuralOperatorReader().refuses(module)
    assert refusal is not None
    assert says in refusal
