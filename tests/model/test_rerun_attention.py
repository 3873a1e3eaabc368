"""Attention computed again: outputs and all gradients of the fused call, for every option."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.rerunning import assert_equal_to_fused

E, HEADS, T, S, N = 6, 2, 4, 5, 3

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "plain": {},
    "no bias": {"bias": False},
    "separate": {"kdim": 5, "vdim": 7},
    "separate without bias": {"kdim": 5, "vdim": 7, "bias": False},
    "learned position": {"add_bias_kv": True},
    "position of zeros": {"add_zero_attn": True},
    "all": {"kdim": 5, "add_bias_kv": True, "add_zero_attn": True},
}
RETURNED: Mapping[str, Mapping[str, Any]] = {
    "no weights": {"need_weights": False},
    "weights": {},
    "weights by head": {"average_attn_weights": False},
}
MASKS = ("none", "2d", "3d", "padding", "2d and padding", "3d and padding", "float", "float padding")
CAUSAL = ("causal", "causal and padding")


def build(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(E, HEADS, **options).double()
    for p in module.parameters():  # biases start at zero
        nn.init.normal_(p, std=0.5)
    return module


def inputs(module: nn.MultiheadAttention, *, batched: bool = True, same: bool = False) -> tuple[Tensor, ...]:
    """Query, key and value; ``same``: of one length, as causal attention has them."""
    source = T if same else S
    widths = ((T, E), (source, module.kdim), (source, module.vdim))
    shapes: list[tuple[int, ...]] = [(t, N, d) if batched else (t, d) for t, d in widths]
    if module.batch_first and batched:
        shapes = [(n, t, d) for t, n, d in shapes]
    return tuple(torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)


def masks(kind: str, *, batched: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {}
    source = T if "causal" in kind else S
    if "2d" in kind:
        found["attn_mask"] = torch.rand(T, source) < 0.3
        found["attn_mask"][:, 0] = False
    if "3d" in kind:
        found["attn_mask"] = torch.rand(N * HEADS if batched else HEADS, T, source) < 0.3
        found["attn_mask"][..., 0] = False
    if kind == "float":
        found["attn_mask"] = torch.randn(T, source, dtype=torch.float64, requires_grad=True)
    if "causal" in kind:
        found["attn_mask"] = torch.ones(T, T, dtype=torch.bool).triu(1)
        found["is_causal"] = True
    if "padding" in kind:
        padding = torch.zeros(N, source, dtype=torch.bool)
        padding[1, 2:] = padding[2, 3:] = True
        padding = padding if kind != "float padding" else torch.where(padding, -1.5, 0.25).double()
        found["key_padding_mask"] = padding if batched else padding[1]
    return found


@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
@pytest.mark.parametrize("mask", MASKS + CAUSAL)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_attention_equals_the_fused_one(
    options: Mapping[str, Any], mask: str, returned: Mapping[str, Any]
) -> None:
    for batch_first, batched in product((False, True), (False, True)):
        module = build(batch_first=batch_first, **options)
        given = inputs(module, batched=batched, same="causal" in mask)
        assert_equal_to_fused(module, given, masks(mask, batched=batched) | dict(returned))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
def test_attention_of_a_sequence_to_itself(returned: Mapping[str, Any], batch_first: bool) -> None:
    module = build(batch_first=batch_first)
    x = inputs(module)[0]
    assert_equal_to_fused(module, (x, x, x), returned)
    memory = inputs(module)[1]
    assert_equal_to_fused(module, (x, memory, memory), returned)


@pytest.mark.parametrize("mask", ["none", "2d and padding", "causal"])
@pytest.mark.parametrize("returned", RETURNED.values(), ids=RETURNED)
def test_dropout_draws_what_the_fused_call_draws(returned: Mapping[str, Any], mask: str) -> None:
    module = build(dropout=0.4)
    given, options = inputs(module, same="causal" in mask), masks(mask) | dict(returned)
    assert_equal_to_fused(module, given, options)
    assert_equal_to_fused(module.eval(), given, options)


def test_a_row_that_sees_nothing_is_what_torch_makes_of_it() -> None:
    module = build()
    mask = torch.zeros(T, S, dtype=torch.bool)
    mask[1] = True
    for need_weights in (False, True):
        given = {"attn_mask": mask, "need_weights": need_weights}
        assert_equal_to_fused(module, inputs(module), given)


def test_arguments_by_position_are_those_of_forward() -> None:
    module = build()
    padding = masks("padding")["key_padding_mask"]
    mask = masks("2d")["attn_mask"]
    assert_equal_to_fused(module, (*inputs(module), padding, True, mask, False))
