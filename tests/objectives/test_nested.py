"""Inputs of several tensors."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from curvlab.objectives.nested import each_tensor


class Pair(NamedTuple):
    left: Any
    right: Any


def doubled(inputs: Any) -> Any:
    return each_tensor(lambda t: 2 * t, inputs)


ONE = torch.ones(2)


@pytest.mark.parametrize(
    "inputs",
    [
        ONE,
        (ONE, ONE),
        [ONE, (ONE,)],
        {"a": ONE, "b": [ONE]},
        Pair(ONE, {"x": ONE}),
        OrderedDict(b=ONE, a=ONE),
        defaultdict(list, a=ONE),
    ],
    ids=lambda x: type(x).__name__,
)
def test_every_tensor_is_changed_and_containers_keep_their_types(inputs: Any) -> None:
    seen: list[Tensor] = []
    found = each_tensor(lambda t: seen.append(t) or t, doubled(inputs))  # type: ignore[func-returns-value]
    assert type(found) is type(inputs)
    assert seen
    assert all(torch.equal(t, 2 * ONE) for t in seen)
    assert torch.equal(ONE, torch.ones(2))


def test_order_and_default_of_a_mapping_are_kept() -> None:
    assert list(doubled(OrderedDict(b=ONE, a=ONE))) == ["b", "a"]
    assert doubled(defaultdict(list, a=ONE))["new"] == []


def test_what_is_no_tensor_stays_as_it_is() -> None:
    assert doubled((None, 3, "word")) == (None, 3, "word")
