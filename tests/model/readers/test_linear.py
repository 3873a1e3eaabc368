"""The reader of linear layers: its bias column and its packing; its rows are compared in ``test_shipped``."""

from __future__ import annotations

import torch
from torch import nn

from curvlab.model.readers.linear import LinearReader

READER = LinearReader()


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
