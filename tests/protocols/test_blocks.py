"""Traffic between parameters and vectors: packed on entry, unpacked at the one write."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvlab.linalg.vectors import BlockVector
from curvlab.model.partition import partition
from curvlab.protocols.blocks import Blocks
from curvlab.testing.asserts import assert_close
from curvlab.testing.problems import DTYPE, normal


class Gain(nn.Module):
    """A layer that nobody reads."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.by = nn.Parameter(torch.ones(1, 1, d))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by[0, 0]


def network(seed: int = 0) -> nn.Sequential:
    """Layers with and without a bias, a norm, an embedding-like table and a tensor of three axes."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 4), Gain(4), nn.Linear(4, 2, bias=False), nn.ConvTranspose1d(2, 3, 2))
    return net.to(DTYPE)


def blocks_of(model: nn.Module, *, joined: bool = True) -> Blocks:
    return partition(model, lambda layer: joined)


def vector(blocks: Blocks, seed: int) -> BlockVector:
    return BlockVector(blocks.layout, normal(blocks.layout.size, seed=seed))


@pytest.mark.parametrize("joined", [True, False])
def test_what_is_packed_and_unpacked_is_what_it_was(joined: bool) -> None:
    blocks = blocks_of(network(), joined=joined)
    tensors = {n: torch.randn_like(p) for n, p in blocks.parameters.items()}
    slots = blocks.slots(blocks.pack(tensors))
    assert slots.keys() == tensors.keys() == dict(network().named_parameters()).keys()
    for name, tensor in tensors.items():
        assert torch.equal(slots[name], tensor), name


def test_a_bias_is_the_last_column_of_its_layers_block() -> None:
    model = network()
    theta = blocks_of(model).read()
    weight, bias = model[0].weight, model[0].bias
    assert torch.equal(theta["0"], torch.cat([weight, bias[:, None]], dim=1))
    assert torch.equal(theta["2"], model[2].weight)
    kernel, bias = model[3].weight, model[3].bias
    assert torch.equal(theta["3"], torch.cat([kernel.transpose(0, 1).flatten(1), bias[:, None]], dim=1))


def test_a_missing_tensor_counts_as_zero() -> None:
    blocks = blocks_of(network())
    packed = blocks.pack({"0.weight": torch.ones(4, 3), "0.bias": None})
    assert float(packed.flat.sum()) == 12.0
    assert float(packed["0"][:, -1].abs().sum()) == 0.0


def test_slots_are_views_of_the_vector() -> None:
    blocks = blocks_of(network())
    v = vector(blocks, 0)
    for slot in blocks.slots(v).values():
        slot.fill_(2.0)
    assert bool((v.flat == 2.0).all())


@pytest.mark.parametrize("joined", [True, False])
def test_the_slots_of_every_vector_are_those_that_its_blocks_are_split_into(joined: bool) -> None:
    """Where parts stand is found once; slowly: by splitting each block, also of a vector inside another."""
    blocks = blocks_of(network(), joined=joined)
    size = blocks.layout.size
    inner = BlockVector(blocks.layout, normal(size + 5, seed=9)[3 : size + 3])
    for v in (vector(blocks, 0), vector(blocks, 1), inner):
        slowly = {n: t for b in blocks.members for n, t in blocks.split(b, v[b.name]).items()}
        slots = blocks.slots(v)
        assert list(slots) == list(slowly)
        for name, slot in slots.items():
            assert torch.equal(slot, slowly[name])
            assert slot.data_ptr() == slowly[name].data_ptr()
            assert slot.stride() == slowly[name].stride()


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 999), alpha=st.floats(-2, 2), joined=st.booleans())
def test_reading_writing_and_adding_are_arithmetic_on_theta(seed: int, alpha: float, joined: bool) -> None:
    model = network(seed)
    blocks = blocks_of(model, joined=joined)
    before, u = blocks.read(), vector(blocks, seed)
    blocks.subtract_(u, alpha)
    assert_close(blocks.read().flat, before.flat - alpha * u.flat, dimension=2)
    v, expected = vector(blocks, seed + 1), vector(blocks, seed + 1).flat + 0.3 * blocks.read().flat
    blocks.add_parameters_(v, 0.3)
    assert_close(v.flat, expected, dimension=2)
    blocks.assign_(before)
    assert torch.equal(blocks.read().flat.view(torch.int64), before.flat.view(torch.int64)), "not bit for bit"


def test_theta_is_read_as_a_copy() -> None:
    model = network()
    blocks = blocks_of(model)
    theta = blocks.read()
    with torch.no_grad():
        model[0].weight.zero_()
    assert float(theta["0"][:, :-1].abs().sum()) > 0


def test_a_selection_keeps_order_parameters_and_what_is_known_of_layers() -> None:
    blocks = blocks_of(network())
    blocks.untapped.add("2")
    some = blocks.select(["3", "0", "2"])
    assert some.layout.names == ("0", "2", "3")
    assert list(some.parameters) == ["0.weight", "0.bias", "2.weight", "3.weight", "3.bias"]
    assert [b.name for b in some.tapped] == ["0", "3"]
    assert len(some) == 3
    some.untapped.add("0")
    assert [b.name for b in blocks.tapped] == ["3"], "a selection learns with the whole"


def test_blocks_that_no_reader_reads_say_why() -> None:
    blocks = blocks_of(network())
    assert blocks["0"].is_layer
    assert blocks["0"].layers == ("0",)
    gain = blocks["1.by"]
    assert not gain.is_layer
    assert "Gain has no layer reader" in gain.reason
    assert blocks.modules.keys() == {"0", "2", "3"}
