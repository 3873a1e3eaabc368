"""The reader of linear layers: rows whose products are the layer's gradient."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvlab.model.partition import partition
from curvlab.model.readers.linear import LinearReader
from curvlab.protocols.reader import total
from curvlab.testing.problems import normal
from curvlab.testing.reference import jacobian

READER = LinearReader()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (5,), (5, 3), (5, 3, 2)], ids=str)
def test_rows_of_gradients_times_rows_of_inputs_are_the_gradient(
    leading: tuple[int, ...], bias: bool
) -> None:
    torch.manual_seed(1)
    layer = nn.Linear(4, 3, bias=bias).double()
    x = torch.randn(*leading, 4, dtype=torch.float64)
    out = layer(x)
    out.retain_grad()
    out.square().sum().backward()
    rows, grads = READER.inputs(layer, x), READER.grads(layer, out.grad, None)
    n = leading[0] if leading else 1
    assert rows.shape[0] == grads.shape[0] == n
    assert rows.shape[1] == grads.shape[1]
    gradient = torch.einsum("nso,nsi->oi", grads, rows)
    torch.testing.assert_close(gradient[:, :4], layer.weight.grad)
    if bias:
        torch.testing.assert_close(gradient[:, 4], layer.bias.grad)
    assert gradient.shape == READER.shape(layer)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (5,), (5, 3), (3, 2, 2), (2, 2, 1, 3)], ids=str)
def test_rows_are_the_jacobian_on_any_leading_shape(leading: tuple[int, ...], bias: bool) -> None:
    """Row f of the dense Jacobian is what the rows make of the f-th unit vector at the output."""
    torch.manual_seed(1)
    layer, x = nn.Linear(4, 3, bias=bias).double(), normal(*leading, 4, seed=1)
    J = jacobian(layer, x, partition(layer, lambda _: True))
    outputs = layer(x).detach()
    for f, expected in enumerate(J):
        unit = torch.zeros_like(outputs)
        unit.view(-1)[f] = 1.0
        assert torch.equal(
            total(READER.inputs(layer, x), READER.grads(layer, unit, None)).flatten(), expected
        )


def test_the_bias_sees_a_one_at_every_position() -> None:
    rows = READER.inputs(nn.Linear(4, 3), torch.randn(5, 2, 4))
    assert torch.equal(rows[..., -1], torch.ones(5, 2))


def test_packing_order_is_weight_then_bias() -> None:
    assert READER.parameters(nn.Linear(2, 2)) == ("weight", "bias")
    assert READER.parameters(nn.Linear(2, 2, bias=False)) == ("weight",)


def test_refusals_name_the_kind_of_layer() -> None:
    assert READER.refuses(nn.Linear(2, 2)) is None
    assert READER.refuses(nn.Conv2d(1, 1, 1)) == ""
    assert READER.refuses(nn.Bilinear(2, 2, 2)) == ""
