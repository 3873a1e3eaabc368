"""Marks of data and functions: equal for equals, other for others, and nothing is kept alive."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch
from torch import Tensor, nn

from curvlab.objectives.losses import CrossEntropy
from curvlab.objectives.mark import Unmarked, bits_of, mark_of, mark_of_module

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2**14 + 3,), (5 * 2**14,)], ids=str)
def test_every_bit_and_every_place_of_a_tensor_counts(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    t = (torch.rand(shape, generator=torch.Generator().manual_seed(0)) * 200).to(dtype)
    mark = bits_of(t)
    assert bits_of(t.clone()) == mark
    assert bits_of(t.unsqueeze(-1).expand(*shape, 2).contiguous()[..., 0]) == mark  # whatever its strides
    assert bits_of(t.unsqueeze(0)) != mark
    for place in {0, t.numel() // 2, t.numel() - 1} if t.numel() else ():
        other = t.clone()
        raw = (
            other.reshape(-1)[place : place + 1].view(torch.uint8)
            if shape
            else other.reshape(1).view(torch.uint8)
        )
        raw[0] ^= 1
        assert bits_of(other) != mark, place


def test_entries_that_change_places_are_another_tensor() -> None:
    t = torch.randn(3 * 2**14, generator=torch.Generator().manual_seed(0))
    halves = t.roll(2**13), t.roll(2**14), t.flip(0), t.roll(1)
    assert len({bits_of(x) for x in (t, *halves)}) == 5


def test_signs_of_zero_and_kinds_of_nan_are_told_apart() -> None:
    assert bits_of(torch.tensor(0.0)) != bits_of(torch.tensor(-0.0))
    assert bits_of(torch.tensor(math.nan)) == bits_of(torch.tensor(math.nan))


@pytest.mark.parametrize(
    "t", [torch.eye(3).to_sparse(), torch.empty(2, device="meta")], ids=["sparse", "meta"]
)
def test_what_has_no_bits_to_read_is_not_marked(t: Tensor) -> None:
    with pytest.raises(Unmarked):
        bits_of(t)


def scaled(by: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x * by


def test_functions_are_marked_by_identity_and_by_what_they_close_over() -> None:
    f = scaled(2.0)
    mark = mark_of(f)
    assert mark == mark_of(f)
    assert mark != mark_of(scaled(2.0))
    assert f.__closure__ is not None
    f.__closure__[0].cell_contents = 3.0
    assert mark != mark_of(f)


def test_losses_that_are_equal_have_one_mark_and_nothing_is_kept_alive() -> None:
    weights = (0.5, 1.0, 2.0)
    assert mark_of(CrossEntropy(class_weights=weights)) == mark_of(CrossEntropy(class_weights=weights))
    assert mark_of(CrossEntropy()) != mark_of(CrossEntropy(label_smoothing=0.1))
    module = nn.CrossEntropyLoss()
    mark, alive = mark_of(module), ref(module)
    assert mark == mark_of(module)
    del module
    gc.collect()
    assert alive() is None
    assert mark != mark_of(nn.CrossEntropyLoss())


def set_to(name: str, value: Any) -> Callable[[nn.Module], None]:
    return lambda module: setattr(module[1], name, value)  # type: ignore[index]


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.eval(),
        set_to("eps", 1e-3),
        set_to("table", [1, {"a": 2.0}]),
        set_to("of_its_own", object),
        lambda m: m[1].running_mean.add_(1.0),
        lambda m: m[0].weight.requires_grad_(False),
        lambda m: m.register_forward_hook(lambda *args: None),
        lambda m: m.append(nn.Tanh()),
    ],
)
def test_a_module_is_marked_by_all_but_its_trained_parameters(change: Callable[[nn.Module], Any]) -> None:
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    mark = mark_of_module(module, trained=False)
    with torch.no_grad():
        module[0].weight.add_(1.0)
    assert mark == mark_of_module(module, trained=False)
    assert mark_of_module(module, trained=True) != mark
    change(module)
    assert mark != mark_of_module(module, trained=False)


class Collecting:
    """A hook at which garbage is collected while it is marked, as may happen at any allocation."""

    @property
    def __class__(self) -> type:  # type: ignore[override]
        gc.collect(0)  # the youngest, which the circle below is among
        return object

    def __call__(self, *given: Any) -> None:
        pass


def test_hooks_of_dead_owners_may_go_while_a_module_is_marked() -> None:
    gc.disable()
    try:
        layer, owner = nn.Linear(2, 3), nn.Module()
        owner.itself = [owner]  # garbage of a circle, as optimizers and their hooks are
        layer.register_forward_hook(Collecting())
        weakref.finalize(owner, layer.register_forward_hook(Collecting()).remove)
        del owner
        found = mark_of_module(layer, trained=True)
    finally:
        gc.enable()
    assert len(layer._forward_hooks) == 1
    assert found == mark_of_module(layer, trained=True)
