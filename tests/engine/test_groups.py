"""Groups partition the parameters of a model, however they are named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from curvlab.engine.groups import Group, resolve
from curvlab.errors import ConfigError
from tests.engine.composed import composed


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


BIASES = ("0.bias", "1.bias", "2.bias")
WEIGHTS = ("0.weight", "1.weight", "2.weight")

WAYS: dict[str, Callable[[nn.Sequential], Any]] = {
    "pattern": lambda net: "*.bias",
    "patterns": lambda net: ["0.b*", "[12].bias"],
    "parameters": lambda net: [layer.bias for layer in net],
    "generator": lambda net: (layer.bias for layer in net),
    "pairs": lambda net: [(n, p) for n, p in net.named_parameters() if n.endswith("bias")],
    "mixture": lambda net: ["0.bias", net[1].bias, "2.bias"],
}


@pytest.mark.parametrize("way", WAYS)
def test_parameters_are_named_in_many_ways_and_the_rest_comes_first(way: str) -> None:
    net = model()
    found = resolve(net, [{"params": WAYS[way](net), "weight_decay": 0.0}], composed("kfac"))
    assert found == [Group(WEIGHTS), Group(BIASES, {"weight_decay": 0.0})]


def test_one_parameter_is_a_group_and_none_is_left_over_where_all_are_named() -> None:
    net = model()
    assert resolve(net, [{"params": net[0].weight}])[1].names == ("0.weight",)
    found = resolve(net, [{"params": "*weight", "lr": 0.1}, {"params": "*bias"}])
    assert [group.names for group in found] == [WEIGHTS, BIASES]
    assert [group.names for group in resolve(net, [])] == [tuple(n for n, _ in net.named_parameters())]


def test_a_tied_parameter_goes_by_any_of_its_names() -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    net[1].weight = net[0].weight
    assert resolve(net, [{"params": "1.weight"}])[1].names == ("0.weight",)


FAULTS: dict[str, tuple[list[Any], str]] = {
    "no match": ([{"params": "*.gain"}], r'matches "\*.gain"'),
    "twice": (
        [{"params": "*.bias"}, {"params": "0.*"}],
        r'"0.bias" is in two groups: groups\[0\] and groups\[1\]',
    ),
    "foreign": ([{"params": nn.Linear(3, 4).weight}], r"shape \[4, 3\] is not a parameter of the model"),
    "foreign pair": ([{"params": nn.Linear(3, 4).named_parameters()}], r'"weight" is not a parameter'),
    "neither": ([{"params": [3]}], r"of type int; expected a parameter"),
    "no params": ([{"lr": 0.1}], r"params is missing"),
    "unknown key": ([{"params": "0.*", "wieght_decay": 0.1}], r"wieght_decay is not a setting"),
    "not of this method": ([{"params": "0.*", "nesterov": True}], r"nesterov is not a setting"),
    "one mapping": ({"params": "0.*"}, r"list of dictionaries"),  # type: ignore[dict-item]
    "no mappings": (["0.*"], r"list of dictionaries"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_what_names_no_partition_is_refused_in_words(case: str) -> None:
    groups, words = FAULTS[case]
    with pytest.raises(ConfigError, match=words):
        resolve(model(), groups, composed("kfac"))
