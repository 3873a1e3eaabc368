"""The convolutional network: its layers and their sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvlab.protocols.needs import Labels
from curvlab.tasks.convnet import convnet
from curvlab.tasks.fashion_convnet import FashionConvnet
from tests.objectives.asking import ask, layers_of, wanting
from tests.tasks.networks import asked, network

SETTINGS = [
    FashionConvnet(),
    FashionConvnet(channels=(1, 1, 1), hidden=1),
    FashionConvnet(channels=(5, 2, 7), hidden=9, activation="tanh"),
]


def test_three_convolutions_and_two_linear_layers() -> None:
    layers = [m for m in FashionConvnet().model() if list(m.parameters())]
    assert [type(m) for m in layers] == 3 * [nn.Conv2d] + 2 * [nn.Linear]


@pytest.mark.parametrize("task", SETTINGS, ids=str)
def test_parameters_are_as_many_as_the_widths_say(task: FashionConvnet) -> None:
    first, second, third = task.channels
    convolutions = (9 + 1) * first + (9 * first + 1) * second + (9 * second + 1) * third
    linear = (49 * third + 1) * task.hidden + (task.hidden + 1) * 10
    assert sum(p.numel() for p in task.model().parameters()) == convolutions + linear


def test_one_layer_is_wide_and_holds_most_parameters() -> None:
    model = FashionConvnet().model()
    count = sum(p.numel() for p in model.parameters())
    assert count == 426_122
    assert model.fc1.weight.shape == (128, 3136)
    assert 0.94 < model.fc1.weight.numel() / count < 0.95


@pytest.mark.parametrize("side", [4, 28, 31])
def test_images_of_any_side_give_one_row_of_logits_each(side: int) -> None:
    model = convnet((2, 3, 4), 5, 6, "relu", side=side)
    assert model.fc1.in_features == 4 * (side // 4) ** 2
    assert model(torch.zeros(7, 1, side, side)).shape == (7, 6)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_activation_follows_every_layer_but_the_last(activation: str) -> None:
    model = FashionConvnet(activation=activation).model()
    assert [n for n, _ in model.named_children()] == [
        *(
            "conv1",
            "act1",
            "pool1",
            "conv2",
            "act2",
            "pool2",
            "conv3",
            "act3",
            "flatten",
            "fc1",
            "act4",
            "fc2",
        )
    ]
    kinds = {type(model.get_submodule(f"act{k}")).__name__.lower() for k in range(1, 5)}
    assert kinds == {activation}


def test_linear_layers_see_one_position_an_example() -> None:
    model = network(FashionConvnet(channels=(2, 2, 3), hidden=6))
    seen = ask(asked(model), wanting(Labels.DATA), layers_of(model))
    for name, inputs, outputs in (("fc1", 3 * 49 + 1, 6), ("fc2", 7, 10)):
        (stats,) = seen.layers[Labels.DATA][name]
        assert stats.inputs.shape == (12, 1, inputs)
        assert stats.grads is not None
        assert stats.grads.shape == (1, 12, 1, outputs)
