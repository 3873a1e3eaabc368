"""The networks of the small tasks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvlab.tasks.mlp import initialize_sparsely, mlp


def test_layers_are_named_and_the_last_is_linear() -> None:
    model = mlp((5, 7, 3), "tanh")
    assert [n for n, _ in model.named_children()] == ["fc1", "act1", "fc2"]
    assert isinstance(model.act1, nn.Tanh)
    assert model(torch.zeros(2, 5)).shape == (2, 3)


def test_layers_named_linear_have_no_activation() -> None:
    model = mlp((5, 7, 2, 7, 5), "sigmoid", linear=(2,))
    assert [n for n, _ in model.named_children()] == ["fc1", "act1", "fc2", "fc3", "act3", "fc4"]


def test_no_hidden_layer_is_a_linear_model() -> None:
    assert [n for n, _ in mlp((5, 3), "relu").named_children()] == ["fc1"]


@pytest.mark.parametrize("connections", [1, 4, 100])
def test_a_sparse_start_gives_each_unit_so_many_connections(connections: int) -> None:
    torch.manual_seed(0)
    model = mlp((30, 200, 8), "sigmoid")
    initialize_sparsely(model, connections)
    for layer in (model.fc1, model.fc2):
        kept = (layer.weight != 0).sum(dim=1)
        assert torch.equal(kept, torch.full_like(kept, min(connections, layer.in_features)))
        assert not layer.bias.any()
        values = layer.weight.detach()[layer.weight != 0]
        # five standard errors of the mean, and of the variance of normal numbers
        assert abs(float(values.mean())) < 5 / len(values) ** 0.5
        assert abs(float(values.var()) - 1) < 5 * (2 / len(values)) ** 0.5
    columns = (model.fc1.weight != 0).any(dim=0)
    assert columns.all()  # 200 units choose among 30 inputs


def test_a_sparse_start_is_drawn_from_the_global_generator() -> None:
    def weights() -> torch.Tensor:
        torch.manual_seed(3)
        model = mlp((6, 5, 4), "sigmoid")
        initialize_sparsely(model, 2)
        return model.fc1.weight.detach().clone()

    assert torch.equal(weights(), weights())
