"""What is held: storages from where they are made to where the last reference goes, nothing else."""

from __future__ import annotations

import gc
from typing import Any

import torch

from curvlab.testing.memory import Held, held

#: numbers, and bytes, of a tensor
N, B = 1000, 4000


def numbers() -> torch.Tensor:
    return torch.ones(N)


def test_what_is_dropped_makes_room() -> None:
    def one_after_the_other() -> None:
        for _ in range(5):
            numbers()

    def all_at_once() -> None:
        kept = [numbers() for _ in range(5)]
        assert kept

    assert held(one_after_the_other) == Held(B, 5)
    assert held(all_at_once) == Held(5 * B, 5)


def test_what_was_there_before_is_not_counted_nor_is_work_in_place() -> None:
    before = numbers()

    def in_place() -> None:
        before.mul_(2.0).add_(before).view(10, 100).t()

    assert held(in_place) == Held(0, 0)


def test_a_view_is_held_once_and_keeps_the_whole() -> None:
    def view() -> None:
        part = numbers()[:1]
        numbers()
        assert part.numel() == 1

    assert held(view) == Held(2 * B, 2)


def test_what_a_backward_pass_keeps_is_held_until_it_is_done() -> None:
    w = torch.ones(N, requires_grad=True)

    def there_and_back() -> None:
        loss = (w * 2.0).exp().exp().sum()
        torch.autograd.backward(loss)

    found = held(there_and_back)
    # w · 2 goes, both exponentials stay, and two gradients are at hand on the way back
    assert 3 * B <= found.peak <= 6 * B


def test_a_tensor_of_pythons_numbers_counts() -> None:
    assert held(lambda: torch.tensor([1.0, 2.0])) == Held(8, 1)


def test_a_storage_that_grows_counts_as_what_it_has_become() -> None:
    def grow() -> None:
        t = torch.empty(0)
        t.resize_(N)
        t.add_(1.0)

    assert held(grow).peak == B


def test_cycles_of_references_do_not_make_it_a_matter_of_chance() -> None:
    def cycles() -> None:
        for _ in range(20):
            ring: list[Any] = [numbers()]
            ring.append(ring)

    assert gc.isenabled()
    assert {held(cycles) for _ in range(3)} == {Held(20 * B, 20)}
    assert gc.isenabled()
