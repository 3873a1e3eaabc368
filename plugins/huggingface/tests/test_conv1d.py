"""The reader of transformers' ``Conv1D``: a linear layer whose weight is transposed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

import curvlab
from curvlab.model.partition import partition
from curvlab.protocols.reader import total
from curvlab.testing.conformance import LayerConformance
from curvlab.testing.problems import normal
from curvlab.testing.reference import jacobian
from curvlab_huggingface.conv1d import Conv1DReader

#: methods that read layers, with the knobs that a plain loop needs; curvature is updated in every second step
METHODS: dict[str, dict[str, Any]] = {
    "kfac": {"labels": "data", "refresh": 2},
    "ekfac": {"labels": "data", "refresh": 2},
    "foof": {"refresh": 2},
    "cg-fac": {"labels": "data"},
    "singd": {"refresh": 2},
    "ingd": {"refresh": 2},
    "ikfac": {"refresh": 2},
}
READER = Conv1DReader()


class TestSuite(LayerConformance):
    def make(self) -> Conv1DReader:
        return Conv1DReader()


class Doubled(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def frozen(name: str) -> Conv1D:
    """A layer of which one parameter is frozen."""
    layer = Conv1D(3, 4).double()
    layer.get_parameter(name).requires_grad_(False)
    return layer


@pytest.mark.parametrize("untrained", [None, "weight", "bias"])
@pytest.mark.parametrize("leading", [(5,), (5, 3), (2, 2, 3)], ids=str)
def test_rows_are_the_jacobian_on_any_leading_shape(leading: tuple[int, ...], untrained: str | None) -> None:
    torch.manual_seed(1)
    layer = Conv1D(3, 4).double() if untrained is None else frozen(untrained)
    x = normal(*leading, 4, seed=1)
    blocks = partition(layer, lambda _: True, readers=(READER,))
    (block,) = blocks.members
    assert block.is_layer
    reader = block.reader
    assert reader is not None
    outputs = layer(x).detach()
    for f, expected in enumerate(jacobian(layer, x, blocks)):
        unit = torch.zeros_like(outputs)
        unit.view(-1)[f] = 1.0
        rows = total(reader.inputs(layer, x), reader.grads(layer, unit, x))
        torch.testing.assert_close(rows.flatten(), expected, rtol=0, atol=1e-15)


def test_the_block_is_the_transposed_weight_then_the_bias() -> None:
    layer = Conv1D(3, 4)
    assert READER.shape(layer) == (3, 5)
    weight = READER.matrix(layer, "weight", layer.weight.detach())
    assert torch.equal(weight, layer.weight.T)
    assert torch.equal(READER.unpacked(layer, "weight", weight), layer.weight)
    bias = READER.matrix(layer, "bias", layer.bias.detach())
    assert bias.shape == (3, 1)
    assert torch.equal(READER.unpacked(layer, "bias", bias), layer.bias)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_trained_as_the_linear_layer_it_is(method: str) -> None:
    """For every method: the same numbers as ``nn.Linear`` with the weight transposed."""
    torch.manual_seed(0)
    ours = nn.Sequential(Conv1D(6, 4), nn.Tanh(), Conv1D(3, 6)).double()
    theirs = copy.deepcopy(ours)
    for k in (0, 2):
        i, o = ours[k].weight.shape
        layer = nn.Linear(i, o).double()
        layer.load_state_dict({"weight": ours[k].weight.T, "bias": ours[k].bias})
        theirs[k] = layer
    x, y = normal(8, 5, 4, seed=2), torch.randint(0, 3, (40,))
    for model in (ours, theirs):
        optimizer = curvlab.optimizer(
            method, model, lr=1e-2, reduction="mean-tokens", strict=True, **METHODS[method]
        )
        assert {row.treatment for row in optimizer.coverage()} == {method}
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x).flatten(0, 1), y).backward()
            optimizer.step()
    for k in (0, 2):
        torch.testing.assert_close(ours[k].weight.T, theirs[k].weight, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(ours[k].bias, theirs[k].bias, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("method", "setting"),
    [
        ("singd", "preconditioner.tied"),
        ("kfac", "preconditioner.estimator.tied"),
        ("cg-fac", "preconditioner.estimator.tied"),
    ],
)
def test_all_of_gpt2_is_read_and_the_tied_embedding_where_that_is_asked(method: str, setting: str) -> None:
    config = GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config)
    left = {r.parameter: r.reason for r in curvlab.optimizer(method, model).coverage() if r.reason}
    assert list(left) == ["transformer.wte.weight"]
    assert 'used transposed by "transformer.wte"' in left["transformer.wte.weight"]
    rows = curvlab.optimizer(method, model, settings={setting: True}).coverage()
    assert {row.treatment for row in rows} == {method}


def test_refusals_say_what_is_no_conv1d() -> None:
    assert READER.refuses(Conv1D(3, 4)) is None
    assert READER.refuses(nn.Linear(4, 3)) == ""
    assert READER.refuses(Doubled(3, 4)) == "Doubled overrides Conv1D.forward"
