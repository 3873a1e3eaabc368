"""Partitions: every trainable parameter in exactly one block, whatever the model."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

from curvlab.model.partition import empty, partition
from curvlab.protocols.blocks import Blocks
from curvlab.protocols.pieces import cut, whole
from tests.model.zoo import ZOO, Specimen, nested

specimens = pytest.mark.parametrize("specimen", ZOO.values(), ids=ZOO.keys())


def by_layer(specimen: Specimen) -> Blocks:
    torch.manual_seed(0)
    return partition(specimen.build(), lambda layer: True)


@specimens
@pytest.mark.parametrize("joined", [True, False])
def test_every_trainable_parameter_is_in_exactly_one_block(specimen: Specimen, joined: bool) -> None:
    model = specimen.build()
    blocks = partition(model, lambda layer: joined)
    placed = Counter(p for b in blocks.members for p in b.parameters)
    assert set(placed.values()) == {1}
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert {whole(p) for p in placed} == trained.keys()
    rows = Counter({n: p.shape[0] if p.dim() else 1 for n, p in trained.items()})
    held = Counter[str]()
    for name in placed:
        held[whole(name)] += cut(name, torch.zeros_like(trained[whole(name)])).shape[:1].numel()
    assert held == rows, "all rows of every parameter"


@specimens
@pytest.mark.parametrize("joined", [True, False])
def test_blocks_hold_as_many_scalars_as_their_parameters_and_have_names_of_their_own(
    specimen: Specimen, joined: bool
) -> None:
    model = specimen.build()
    blocks = partition(model, lambda layer: joined)
    assert blocks.layout.size == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert len({b.name for b in blocks.members}) == len(blocks)


@specimens
def test_layers_are_read_where_their_calls_can_explain_them(specimen: Specimen) -> None:
    blocks = by_layer(specimen)
    assert {b.name: b.layers for b in blocks.members if b.is_layer} == specimen.layers
    found = {b.name: tuple(layer for layer, _ in b.transposed) for b in blocks.members if b.transposed}
    assert found == specimen.transposed


@specimens
def test_a_block_that_is_no_layer_says_why(specimen: Specimen) -> None:
    blocks = by_layer(specimen)
    assert all(b.is_layer != bool(b.reason) for b in blocks.members)
    reasons = {p: b.reason for b in blocks.members for p in b.parameters}
    for parameter, words in specimen.reasons.items():
        assert words in reasons[parameter], parameter


def test_weight_and_bias_are_blocks_of_their_own_where_nobody_joins_them() -> None:
    blocks = partition(nested(), lambda layer: layer == "0.0")
    assert [b.name for b in blocks.members] == ["0.0", "0.1.0.weight", "0.1.0.bias", "1.weight", "1.bias"]
    assert {b.reason for b in blocks.members} == {"", "the method reads no statistics of this layer"}


def test_a_layer_is_asked_about_by_the_name_its_block_will_have() -> None:
    asked: list[str] = []
    for model in (nn.Linear(2, 2), nested()):
        blocks = partition(model, lambda layer: not asked.append(layer))
        assert asked == [b.name for b in blocks.members]
        asked.clear()


@specimens
def test_what_is_packed_comes_back_from_its_slots(specimen: Specimen) -> None:
    blocks = by_layer(specimen)
    tensors = {n: torch.randn_like(p) for n, p in blocks.parameters.items()}
    for name, slot in blocks.slots(blocks.pack(tensors)).items():
        assert torch.equal(slot, cut(name, tensors[whole(name)]))
    whole_again = blocks.assembled(blocks.pack(tensors))
    assert all(torch.equal(whole_again[name], t) for name, t in tensors.items())


def test_a_packed_layer_has_its_bias_as_last_column() -> None:
    model = nn.Linear(4, 3)
    blocks = partition(model, lambda layer: True)
    expected = torch.cat([model.weight, model.bias[:, None]], dim=1)
    assert torch.equal(blocks.read()["model"], expected)


def test_a_parameter_without_gradient_is_packed_as_zeros() -> None:
    blocks = partition(nn.Linear(4, 3), lambda layer: True)
    blocks.layout.recycle(blocks.layout.zeros(like=blocks.like).add_(blocks.read()))  # a used buffer
    packed = blocks.pack({"weight": torch.ones(3, 4), "bias": None})["model"]
    assert torch.equal(packed, torch.cat([torch.ones(3, 4), torch.zeros(3, 1)], dim=1))


@specimens
def test_the_one_write_subtracts_and_can_be_taken_back_bit_for_bit(specimen: Specimen) -> None:
    blocks = by_layer(specimen)
    before, theta = {n: p.clone() for n, p in blocks.model.named_parameters()}, blocks.read()
    update = blocks.pack({n: torch.randn_like(p) for n, p in blocks.parameters.items()})
    blocks.subtract_(update, 0.5)
    moved = blocks.assembled(update)
    for name, p in blocks.model.named_parameters():
        expected = before[name] - 0.5 * moved[name] if name in moved else before[name]
        torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-6, atol=1e-6)
    blocks.assign_(theta)
    assert all(torch.equal(p, before[n]) for n, p in blocks.model.named_parameters())


def test_a_selection_keeps_order_and_shares_what_was_found_out() -> None:
    blocks = partition(nested(), lambda layer: True)
    some = blocks.select(["1", "0.0"])
    assert [b.name for b in some.members] == ["0.0", "1"]
    blocks.untapped.add("1")
    assert [b.name for b in some.tapped] == ["0.0"]


class WithoutElements(nn.Module):
    """Layers of which nothing is left, in part or as a whole, before one that is whole."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow, self.gone = nn.Linear(0, 3), nn.Linear(3, 0)
        self.nothing = nn.Parameter(torch.zeros(2, 0))
        self.layer = nn.Linear(3, 2)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_parameter_without_elements_is_in_no_block_and_is_listed() -> None:
    model = WithoutElements()
    blocks = partition(model, lambda layer: True)
    assert [(b.name, b.is_layer) for b in blocks.members] == [("narrow.bias", True), ("layer", True)]
    assert blocks["narrow.bias"].parameters == ("narrow.bias",)
    left_out = {"nothing", "narrow.weight", "gone.weight", "gone.bias"}
    assert empty(model) == dict.fromkeys(left_out, "no elements")
    model.nothing.requires_grad_(False)
    assert empty(model).keys() == left_out - {"nothing"}


def test_complex_parameters_are_blocks_of_pairs_before_the_real_ones() -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 2, dtype=torch.complex64))
    blocks = partition(model, lambda layer: True)
    shapes = {b.name: (tuple(b.shape), b.complex, b.reason) for b in blocks.members}
    assert shapes == {
        "1.weight": ((2, 1, 2), True, "complex parameter"),
        "1.bias": ((2, 2), True, "complex parameter"),
        "0": ((1, 4), False, ""),
    }
    assert blocks.like.dtype == torch.float32
