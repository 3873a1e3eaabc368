"""The reader of torch_geometric's linear layer, by itself and inside convolutions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch_geometric.nn import GCNConv, Linear, SAGEConv

import curvlab
from curvlab.model.partition import partition
from curvlab.protocols.reader import total
from curvlab.testing.conformance import LayerConformance
from curvlab.testing.problems import normal
from curvlab.testing.reference import jacobian
from curvlab_graphs.linear import GraphLinearReader

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
READER = GraphLinearReader()
#: a ring of six nodes
EDGES = torch.tensor([[0, 1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 0]])


class TestSuite(LayerConformance):
    def make(self) -> GraphLinearReader:
        return GraphLinearReader()


class Doubled(Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(5,), (5, 3)], ids=str)
def test_rows_are_the_jacobian_on_any_leading_shape(leading: tuple[int, ...], bias: bool) -> None:
    layer, x = Linear(4, 3, bias=bias).double(), normal(*leading, 4, seed=1)
    blocks = partition(layer, lambda _: True, readers=(READER,))
    outputs = layer(x).detach()
    for f, expected in enumerate(jacobian(layer, x, blocks)):
        unit = torch.zeros_like(outputs)
        unit.view(-1)[f] = 1.0
        rows = total(READER.inputs(layer, x), READER.grads(layer, unit, x))
        torch.testing.assert_close(rows.flatten(), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("method", METHODS)
def test_a_convolution_is_trained_as_one_with_a_linear_layer_of_torch(method: str) -> None:
    torch.manual_seed(0)
    ours = GCNConv(4, 3, bias=False).double()
    theirs = copy.deepcopy(ours)
    theirs.lin = nn.Linear(4, 3, bias=False).double()
    theirs.lin.load_state_dict(ours.lin.state_dict())
    x, y = normal(6, 4, seed=2), torch.tensor([0, 1, 2, 0, 1, 2])
    for model in (ours, theirs):
        optimizer = curvlab.optimizer(method, model, lr=1e-2, strict=True, **METHODS[method])
        assert [row.treatment for row in optimizer.coverage()] == [method]
        for _ in range(5):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x, EDGES), y).backward()
            optimizer.step()
    torch.testing.assert_close(ours.lin.weight, theirs.lin.weight, rtol=0, atol=0)


def test_both_matrices_of_a_convolution_with_two_are_read() -> None:
    optimizer = curvlab.optimizer("singd", SAGEConv(4, 3))
    assert {row.treatment for row in optimizer.coverage()} == {"singd"}


def test_refusals_say_what_is_no_linear_layer_of_theirs() -> None:
    assert READER.refuses(Linear(4, 3)) is None
    assert READER.refuses(nn.Linear(4, 3)) == ""
    assert READER.refuses(Doubled(4, 3)) == "Doubled overrides Linear.forward"
